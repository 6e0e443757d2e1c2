"""Whether a row's peak memory grew, by what processes of its own say.

A peak is that of a process: its heap has holes, and its allocator has cached blocks,
that the rows before left there. The baseline's come from fresh processes, so beside
several of those a growth in the run's process makes a row suspicious, and fresh ones
decide. Knows peaks, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from llama_perf.limits import Limits, describe, moved_by
from llama_perf.records import BaselineRow, Measurement, MetricChange
from llama_perf.stats import THRESHOLDS
from llama_perf.trials import Trial, undecided_since

METRIC = "peak memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPeak:
    """What is to be said of a row's peak: its change, and how it was decided on."""

    changes: tuple[MetricChange, ...] = ()
    reason: str = ""
    suspicious: bool = False
    undecided: bool = False

    @property
    def worse(self) -> bool:
        """Whether it grew."""
        return any(each.worse for each in self.changes)


def stored_peak(stored: BaselineRow) -> float:
    """The median peak of the row's processes, in bytes."""
    each = stored.processes or (stored.measurement,)
    return median(one.peak_memory_bytes for one in each)


def peak_change(
    current: float, stored: BaselineRow, limits: Limits | None
) -> MetricChange | None:
    """The move of the peak, bytes, beside a baseline's; None where that has none."""
    then = stored_peak(stored)
    if then <= 0:
        return None
    limit = None if limits is None else limits.peak_memory_limit(then)
    return moved_by(METRIC, then, current, limit, 1)


def judge_peak(
    now: Measurement,
    stored: BaselineRow,
    limits: Limits,
    fresh: Sequence[Trial] | None,
) -> JudgedPeak:
    """The peak of a measured row beside a baseline's, which may have none.

    `fresh` are the row's fresh processes, None where none were asked. Their median
    decides. A baseline of fewer processes than tell a loss of speed from noise decides
    at once, as it does of speed.
    """
    moved = peak_change(now.peak_memory_bytes, stored, limits)
    if moved is None:
        return JudgedPeak()
    if not moved.worse or len(stored.processes or ()) < THRESHOLDS.least_processes:
        return JudgedPeak(changes=(moved,), reason=describe(moved))
    doubted = JudgedPeak(
        changes=(replace(moved, worse=False),),
        reason=describe(moved),
        suspicious=True,
    )
    peaks = [
        each.row.measurement.peak_memory_bytes
        for each in fresh or ()
        if each.row.measurement is not None
    ]
    if (why := undecided_since(fresh, len(peaks))) is not None:
        return replace(doubted, undecided=True, reason=f"{doubted.reason}; {why}")
    again = peak_change(median(peaks), stored, limits)
    assert again is not None, "the baseline has a peak"
    told = (
        f"; {'confirmed' if again.worse else 'not confirmed'} by {len(peaks)} fresh"
        f" processes: {again.current / 1e9:.3f} GB ({again.change:+.1%})"
    )
    return replace(
        doubted,
        changes=(replace(moved, worse=again.worse),),
        reason=doubted.reason + told,
    )
