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

from llama_perf.gate.confirmation import Trial, confirmation_of, undecided_since
from llama_perf.gate.limits import Limits, describe, moved_by
from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.results.baseline import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.verdict import MetricChange


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


def plain_peak(
    current: float, stored: BaselineRow, limits: Limits | None
) -> JudgedPeak:
    """A peak, bytes, beside that of a baseline's row, which may have none.

    Decided by the plain limit; without limits nothing is.
    """
    then = stored_peak(stored)
    if then <= 0:
        return JudgedPeak()
    limit = None if limits is None else limits.peak_memory_limit(then)
    moved = moved_by("peak memory", then, current, limit, 1)
    return JudgedPeak(changes=(moved,), reason=describe(moved))


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
    found = plain_peak(now.peak_memory_bytes, stored, limits)
    if not found.worse or len(stored.processes or ()) < THRESHOLDS.least_processes:
        return found
    peaks = [
        each.row.measurement.peak_memory_bytes
        for each in fresh or ()
        if each.row.measurement is not None
    ]
    worse = False
    told = undecided = undecided_since(fresh, len(peaks))
    if undecided is None:
        (again,) = plain_peak(median(peaks), stored, limits).changes
        worse = again.worse
        told = (
            f"{confirmation_of(worse, len(peaks))}: {again.current / 1e9:.3f} GB"
            f" ({again.change:+.1%})"
        )
    return JudgedPeak(
        changes=tuple(replace(each, worse=worse) for each in found.changes),
        reason=f"{found.reason}; {told}",
        suspicious=True,
        undecided=undecided is not None,
    )
