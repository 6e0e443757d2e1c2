"""Whether a row's peak memory grew.

A peak belongs to a process: earlier rows leave holes in its heap and cached blocks in
its allocator. The baseline's peaks come from fresh processes. A growth in the process
of the run therefore makes a row suspicious, and fresh processes decide. Knows peaks,
and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from llama_perf.gate.confirmation import Trial, confirmation_of, why_undecided
from llama_perf.gate.limits import describe, metric_change
from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.metrics import PEAK_MEMORY
from llama_perf.results.baseline import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.verdict import MetricChange
from llama_perf.rows.limit_overrides import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPeak:
    """The judgement on a row's peak; without a stored peak there is no change."""

    change: MetricChange | None = None
    reason: str = ""
    suspicious: bool = False
    undecided: bool = False

    @property
    def worse(self) -> bool:
        """Whether the peak grew."""
        return self.change is not None and self.change.worse


def stored_peak(stored: BaselineRow) -> float:
    """The median peak of the row's processes, in bytes."""
    processes = stored.processes or (stored.measurement,)
    return median(process.peak_memory_bytes for process in processes)


def compare_peak(
    peak_bytes: float, stored: BaselineRow, limits: Limits | None
) -> JudgedPeak:
    """Compare a peak with a stored row's. Without limits nothing is judged."""
    then = stored_peak(stored)
    if then <= 0:
        return JudgedPeak()
    limit = None
    if limits is not None:
        limit = max(limits["peak_memory"], limits["peak_memory_bytes"] / then)
    change = metric_change(PEAK_MEMORY.title, then, peak_bytes, limit)
    return JudgedPeak(change=change, reason=describe(change))


def judge_peak(
    now: Measurement, stored: BaselineRow, limits: Limits, fresh: Sequence[Trial] | None
) -> JudgedPeak:
    """Judge the peak of a measured row by its limit, and a growth by fresh processes.

    `fresh` are the row's fresh processes, None if confirmation was off; their median
    decides. A baseline of too few processes decides at once, as for speed.
    """
    peak = compare_peak(now.peak_memory_bytes, stored, limits)
    if not peak.worse or len(stored.processes or ()) < THRESHOLDS.min_processes:
        return peak
    assert peak.change is not None, "a peak that grew has a change"
    peaks = [
        trial.row.measurement.peak_memory_bytes
        for trial in fresh or ()
        if trial.row.measurement is not None
    ]
    why = why_undecided("larger", fresh, len(peaks))
    if why is not None:
        return replace(
            peak,
            change=replace(peak.change, worse=False),
            reason=f"{peak.reason}; {why}",
            suspicious=True,
            undecided=True,
        )
    confirmed = compare_peak(median(peaks), stored, limits).change
    assert confirmed is not None, "the stored peak is known"
    return replace(
        peak,
        change=replace(peak.change, worse=confirmed.worse),
        reason=f"{peak.reason}; {confirmation_of(confirmed.worse, len(peaks))}:"
        f" {PEAK_MEMORY.shown(confirmed.current)} ({confirmed.change:+.1%})",
        suspicious=True,
    )
