"""Pure functions on samples. No torch, no records."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

NS = 1e9
GB = 1e9


def median_rate(counts: int, durations_ns: Sequence[int]) -> float:
    """The median of `counts` per second over the durations."""
    return counts * NS / median(durations_ns)


def median_seconds(durations_ns: Sequence[int]) -> float:
    """The median of the durations in seconds."""
    return median(durations_ns) / NS


def change(current: float, baseline: float) -> float:
    """The change from `baseline`, which is positive, as a share of it."""
    return current / baseline - 1.0
