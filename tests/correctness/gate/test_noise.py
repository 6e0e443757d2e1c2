"""The between-process deviation, its shrinkage, and the functions it takes."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.noise import (
    Spread,
    between_processes,
    digamma,
    inverse_trigamma,
    shrunk,
    t_multiplier,
    trigamma,
)

POSITIVE = st.floats(1e-3, 1e4)
SPREADS = st.lists(
    st.builds(
        Spread,
        deviation=st.floats(1e-6, 1.0),
        degrees=st.integers(1, 30).map(float),
    ),
    min_size=2,
    max_size=30,
)
EULER = 0.5772156649015329


def test_digamma_and_trigamma_have_their_known_values() -> None:
    assert digamma(1.0) == pytest.approx(-EULER, abs=1e-8)
    assert digamma(0.5) == pytest.approx(-EULER - 2 * math.log(2), abs=1e-8)
    assert trigamma(1.0) == pytest.approx(math.pi**2 / 6, rel=1e-8)
    assert trigamma(0.5) == pytest.approx(math.pi**2 / 2, rel=1e-8)


@given(POSITIVE)
def test_digamma_and_trigamma_step_as_they_must(x: float) -> None:
    assert digamma(x + 1) == pytest.approx(digamma(x) + 1 / x, rel=1e-7, abs=1e-7)
    assert trigamma(x + 1) == pytest.approx(trigamma(x) - 1 / x**2, rel=1e-6, abs=1e-9)


@given(POSITIVE)
def test_the_inverse_of_trigamma_leads_back(value: float) -> None:
    assert trigamma(inverse_trigamma(value)) == pytest.approx(value, rel=1e-7)


# Quantiles of Student's t from its tables, at normal quantiles of the same tail.
@pytest.mark.parametrize(
    ("normal", "degrees", "quantile"),
    [
        (1.959964, 4, 2.776445),
        (1.959964, 9, 2.262157),
        (1.959964, 30, 2.042272),
        (3.290527, 4, 8.610302),
        (3.290527, 9, 4.780913),
        (3.290527, 30, 3.645959),
        (3.090232, 10, 4.143700),
    ],
)
def test_a_multiple_of_an_estimate_is_students(
    normal: float, degrees: float, quantile: float
) -> None:
    found = t_multiplier(normal, degrees)
    assert quantile * 0.999 <= found <= quantile * 1.05


@given(st.floats(0.1, 5), st.floats(2, 200))
def test_what_is_less_well_known_takes_a_larger_multiple(
    normal: float, degrees: float
) -> None:
    assert t_multiplier(normal, math.inf) == normal
    assert normal < t_multiplier(normal, degrees + 1) < t_multiplier(normal, degrees)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(-5, 5))
def test_a_deviation_does_not_depend_on_the_speed(
    logs: list[float], moved: float
) -> None:
    found = between_processes(logs)
    shifted = between_processes([each + moved for each in logs])
    assert found.degrees == len(logs) - 1
    assert found.deviation > 0
    assert shifted.deviation == pytest.approx(found.deviation, rel=1e-6, abs=1e-6)


@given(SPREADS)
def test_shrinking_draws_towards_one_value_and_keeps_the_order(
    spreads: list[Spread],
) -> None:
    found = shrunk(spreads)
    most = sum(each.degrees for each in spreads)
    for own, drawn in zip(spreads, found, strict=True):
        assert drawn.deviation > 0
        assert min(own.degrees, most) <= drawn.degrees <= most
    for one, other in pairwise(spreads):
        if one.degrees == other.degrees and one.deviation < other.deviation:
            ours, theirs = (found[spreads.index(each)] for each in (one, other))
            assert ours.deviation <= theirs.deviation


def test_one_row_keeps_its_own() -> None:
    only = Spread(deviation=0.01, degrees=4.0)
    assert shrunk([only]) == [only]


def drawn(deviations: list[float], processes: int) -> list[Spread]:
    source = random.Random(0)
    return [
        between_processes([source.gauss(0, each) for _ in range(processes)])
        for each in deviations
    ]


def test_rows_alike_share_a_deviation_and_rows_unlike_keep_their_own() -> None:
    own = drawn([0.01] * 40, 5)
    alike = shrunk(own)

    def error(spreads: list[Spread]) -> float:
        return fmean((each.deviation / 0.01 - 1) ** 2 for each in spreads)

    assert error(alike) < error(own) / 2
    assert alike[0].degrees > 2 * own[0].degrees
    wide = drawn([0.001, 0.01, 0.1, 1.0] * 10, 5)
    unlike = shrunk(wide)
    assert unlike[0].degrees < 1.5 * wide[0].degrees
    means = [fmean(each.deviation for each in unlike[start::4]) for start in range(4)]
    for less, more in pairwise(means):
        assert more > 4 * less
