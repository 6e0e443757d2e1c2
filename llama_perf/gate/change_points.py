"""Where a series of figures changed for good, by Apache Otava: E-divisive and a t-test.

Otava is an optional package. docs/history.md has the study that its settings and the
rules of this module are chosen by.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from llama_perf.errors import UserError

WINDOW = 30
"""The runs that Otava looks at together; a window begins every half of it."""
MAX_P_VALUE = 1e-6
"""What the t-test of both sides of a change point may have at most."""
LEAST = 0.02
"""The change, as a share, below which none counts."""
MIN_RUNS = 3
"""The runs from a change point on, up to the next one, with which it counts."""

MOST_APART = 3.0
"""The deviations by which a figure may differ from the median of its neighbours."""


class Step(NamedTuple):
    """A change: the first index of the new level, both levels, and the p-value."""

    start: int
    old: float
    new: float
    p_value: float

    @property
    def change(self) -> float:
        """The change as a share."""
        return self.new / self.old - 1


def why_not() -> str | None:
    """Why no change points can be found here, None where they can."""
    if find_spec("otava") is not None:
        return None
    install = "pip install 'llama-perf[history]'"
    return f"change points need otava, which is not installed: {install}"


def steps(values: Sequence[float], *, least: float = LEAST) -> list[Step]:
    """The changes of a series of positive figures; raises UserError without Otava."""
    return counted_ones(values, candidates(values), least=least)


def candidates(
    values: Sequence[float],
    *,
    window: int = WINDOW,
    max_p_value: float = MAX_P_VALUE,
    most_apart: float = MOST_APART,
) -> dict[int, float]:
    """Otava's change points in the logarithms of `values`: p-values by index."""
    if (problem := why_not()) is not None:
        raise UserError(problem)
    # scipy.stats takes most of a second.
    from otava.analysis import compute_change_points

    # A list: Otava cuts no windows out of an array of numpy, and breaks.
    logs = _clipped([math.log(value) for value in values], most_apart)
    found, _ = compute_change_points(logs, window_len=window, max_pvalue=max_p_value)
    return {int(one.index): float(one.stats.pvalue) for one in found}


def _clipped(logs: Sequence[float], most_apart: float) -> list[float]:
    """The series, with figures that stand alone moved toward their neighbours.

    One outlier would make the variance of a whole level so large that no change of it
    is significant. A level of `MIN_RUNS` figures stays as it is.
    """
    apart = [abs(new - old) for old, new in pairwise(logs)]
    # The deviation of a single figure, which neither outliers nor changes move.
    most = most_apart * median(apart) / (0.6745 * math.sqrt(2)) if apart else 0.0
    if most == 0:
        return list(logs)
    clipped = []
    for index, value in enumerate(logs):
        near = median(logs[max(index - MIN_RUNS + 1, 0) : index + MIN_RUNS])
        clipped.append(min(max(value, near - most), near + most))
    return clipped


def counted_ones(
    values: Sequence[float],
    p_values: Mapping[int, float],
    *,
    least: float,
    min_runs: int = MIN_RUNS,
) -> list[Step]:
    """The change points that count, of those with these p-values.

    Levels are medians. A level of fewer than `min_runs` figures joins the one before,
    and so do two levels that lie closer together than `least`.
    """
    kept = _long_enough(sorted(p_values), len(values), min_runs)
    while kept:
        levels = _levels(values, kept)
        changes = [abs(math.log(new / old)) for old, new in pairwise(levels)]
        smallest = changes.index(min(changes))
        # Of a gain and a loss of that share, the gain is the smaller logarithm.
        if changes[smallest] >= math.log1p(least):
            return [
                Step(index, old, new, p_values[index])
                for index, (old, new) in zip(kept, pairwise(levels), strict=True)
            ]
        del kept[smallest]
    return []


def _long_enough(indices: list[int], count: int, min_runs: int) -> list[int]:
    """The indices without those with a level beside them that is too short."""
    kept: list[int] = []
    end = count
    for index in reversed(indices):
        if end - index >= min_runs and index >= min_runs:
            kept.insert(0, index)
            end = index
    return kept


def _levels(values: Sequence[float], indices: Sequence[int]) -> list[float]:
    edges = [0, *indices, len(values)]
    return [median(values[start:end]) for start, end in pairwise(edges)]
