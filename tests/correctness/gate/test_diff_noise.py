"""The limit between two recordings: what it follows from, and how often it errs."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from llama_perf.gate import thresholds
from llama_perf.gate.thresholds import Spread, shrunk


def test_the_difference_has_the_variance_of_both_means() -> None:
    wide, narrow = (
        Spread(deviation=deviation, degrees=degrees, processes=count)
        for deviation, degrees, count in ((0.02, 4.0, 5), (0.01, 9.0, 10))
    )
    found = thresholds.difference(wide, narrow, (5, 10))
    assert found is not None
    assert found.deviation == pytest.approx(math.sqrt(0.02**2 / 5 + 0.01**2 / 10))
    assert found.degrees == 4
    assert thresholds.difference(None, None, (1, 2)) is None
    known = replace(wide, degrees=math.inf)
    # A side of too few processes takes the other's.
    for count, limit in (
        (1, thresholds.faster_limit),
        (thresholds.CONFIRM_PROCESSES, thresholds.confirm_limit),
    ):
        one = thresholds.difference(known, None, (5, count))
        other = thresholds.difference(None, known, (count, 5))
        assert one == other
        assert one is not None
        assert thresholds.difference_limit(one) == pytest.approx(limit(known))


def test_the_loss_that_is_found_is_found_nine_times_in_ten() -> None:
    known = Spread(deviation=0.01, degrees=math.inf, processes=5)
    both = thresholds.difference(known, known, (5, 5))
    assert both is not None
    loss = -math.log1p(-thresholds.difference_found(both))
    beyond = (loss - thresholds.difference_limit(both)) / both.deviation
    assert NormalDist().cdf(beyond) == pytest.approx(0.9)
    # Two recordings of five processes that differ by 1 %: 2.5 % is judged.
    assert thresholds.difference_limit(both) == pytest.approx(0.04 * math.sqrt(0.4))


ROWS, ALARMS = 20, 0.001


def alarms(
    deviations: tuple[float, float], processes: tuple[int, int], runs: int
) -> float:
    """The chance that any of 20 unchanged rows is called slower.

    Deviations are drawn as the samples of so many processes have them, and shrunk as a
    recording's are. Given the limit that follows, the chance is that of a normal
    difference of the means.
    """
    source = np.random.default_rng(0)
    normal, true = NormalDist(), zip(deviations, processes, strict=True)
    deviation = math.sqrt(sum(one**2 / count for one, count in true))
    chances = []
    for _ in range(runs):
        sides = [
            _spreads(source, one, count)
            for one, count in zip(deviations, processes, strict=True)
        ]
        missed = 1.0
        for before, after in zip(*sides, strict=True):
            spread = thresholds.difference(before, after, processes)
            assert spread is not None
            limit = thresholds.difference_limit(spread, min_loss=0)
            missed *= 1 - normal.cdf(-limit / deviation)
        chances.append(1 - missed)
    return float(np.mean(chances))


def _spreads(
    source: np.random.Generator, deviation: float, count: int
) -> list[Spread | None]:
    if count < thresholds.MIN_PROCESSES:
        return [None] * ROWS
    drawn = source.chisquare(count - 1, ROWS) / (count - 1)
    return [
        *shrunk(
            [
                Spread(
                    deviation=deviation * math.sqrt(one),
                    degrees=count - 1,
                    processes=count,
                )
                for one in drawn.tolist()
            ]
        )
    ]


@pytest.mark.parametrize(
    ("deviations", "processes"),
    [
        ((0.01, 0.01), (5, 5)),
        ((0.01, 0.01), (10, 1)),
        ((0.01, 0.01), (3, 3)),
        ((0.01, 0.01), (3, 10)),
        # Days of other noise.
        ((0.01, 0.03), (10, 5)),
        ((0.03, 0.01), (5, 5)),
        ((0.03, 0.01), (3, 10)),
    ],
)
def test_unchanged_rows_raise_no_more_alarms_than_the_gate(
    deviations: tuple[float, float], processes: tuple[int, int]
) -> None:
    assert alarms(deviations, processes, runs=150) <= ALARMS
