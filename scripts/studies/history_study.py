"""`python -m scripts.studies.history_study`: what `llama-perf history check` finds.

Histories of 200 nights are made up, with changes at known nights, and checked after
each night, as a nightly job does. With --write the tables go into docs/history.md.
Same seeds, same tables.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from llama_perf.gate import change_points
from llama_perf.gate.change_points import Step

Floats: TypeAlias = npt.NDArray[np.float64]
NIGHTS = 200
FIRST = 10
"""The night of the first check."""
DEVIATIONS = (0.005, 0.01, 0.03, 0.10)
LOSSES = (0.01, 0.02, 0.03, 0.05, 0.10, 0.25)
AFTER = (1, 2, 3, 5, 10, 20, 30)
"""So many nights after a change it is looked whether a check has found it."""
NEAR = 5
"""A change point lies so many nights from the change at most, or it is another one."""
SERIES = 100
DRIFT_SHARE, DRIFT_KEPT = 0.2, 0.9
OUTLIERS, OUTLIER_LOSS = 0.01, 0.3


class Settings(NamedTuple):
    """How change points are found, those of `llama_perf` by default."""

    window: int = change_points.WINDOW
    max_p_value: float = change_points.MAX_P_VALUE
    min_runs: int = change_points.MIN_RUNS
    least: float = change_points.LEAST

    def steps(self, values: Sequence[float]) -> list[Step]:
        """The change points of a series."""
        found = change_points.candidates(
            values, window=self.window, max_p_value=self.max_p_value
        )
        return change_points.counted_ones(
            values, found, least=self.least, min_runs=self.min_runs
        )


USUAL = Settings()


def nights(
    deviation: float, seed: int, changes: Sequence[tuple[int, float]] = ()
) -> list[float]:
    """A history of tok/s, about 100 before the first of `changes`: (night, share).

    The logarithms have a standard deviation of `deviation`: a fifth of the variance
    drifts from night to night, the rest has the tails of Student's t of 4 degrees. One
    night in a hundred is slower by up to 30 %.
    """
    source = np.random.default_rng([seed, round(deviation * 1e4)])
    own = source.standard_t(4, NIGHTS) / math.sqrt(2) * math.sqrt(1 - DRIFT_SHARE)
    pushes = source.standard_normal(NIGHTS) * math.sqrt(1 - DRIFT_KEPT**2)
    drift = [float(source.standard_normal())]
    for push in pushes[1:]:
        drift.append(DRIFT_KEPT * drift[-1] + float(push))
    logs = deviation * (own + math.sqrt(DRIFT_SHARE) * np.array(drift))
    hit = source.random(NIGHTS) < OUTLIERS
    logs += hit * np.log1p(-OUTLIER_LOSS * source.random(NIGHTS))
    for night, change in changes:
        logs[night:] += math.log1p(change)
    values: list[float] = (100 * np.exp(logs)).tolist()
    return values


def alarms(values: Sequence[float], settings: Settings = USUAL) -> list[int]:
    """The nights after which a check of an unchanged history begins to fail."""
    failing = [False]
    for count in range(FIRST, len(values) + 1):
        steps = settings.steps(values[:count])
        failing.append(bool(steps) and steps[-1].change < 0)
    begins = pairwise(failing)
    return [FIRST + night for night, (was, is_now) in enumerate(begins) if is_now > was]


def nights_to_find(
    values: Sequence[float], night: int, settings: Settings = USUAL
) -> int | None:
    """After how many nights a check fails for a loss in `night`; None: in no 30."""
    for count in range(1, AFTER[-1] + 1):
        steps = settings.steps(values[: night + count])
        if steps and steps[-1].change < 0 and abs(steps[-1].start - night) <= NEAR:
            return count
    return None


def changed(
    deviation: float, change: float, series: int
) -> Iterator[tuple[list[float], int]]:
    """Histories with one change, each with its night, somewhere in the middle."""
    for seed in range(series):
        night = 60 + 7 * seed % 100
        yield nights(deviation, 1000 + seed, [(night, change)]), night


def share(found: Sequence[bool]) -> str:
    """So many of a hundred."""
    return f"{sum(found) / len(found):.0%}"
