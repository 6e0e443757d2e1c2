"""Whether a row's peak memory grew.

A peak belongs to a process: earlier rows leave holes in its heap and cached blocks in
its allocator. The baseline's peaks come from fresh processes. A growth in the process
of the run therefore makes a row suspicious, and fresh processes decide. Knows peaks,
and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from llama_perf.gate.confirmation import Judgement, Trial, decided
from llama_perf.gate.limits import describe, metric_change
from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.metrics import PEAK_MEMORY
from llama_perf.results.baseline import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.rows.limit_overrides import Limits


def stored_peak(stored: BaselineRow) -> float:
    """The median peak of the row's processes, in bytes."""
    return median(process.peak_memory_bytes for process in stored.samples)


def compare_peak(
    peak_bytes: float, stored: BaselineRow, limits: Limits | None
) -> Judgement:
    """Compare a peak with a stored row's. Without limits nothing is judged."""
    then = stored_peak(stored)
    if then <= 0:
        return Judgement()
    limit = None
    if limits is not None:
        limit = max(limits["peak_memory"], limits["peak_memory_bytes"] / then)
    change = metric_change(PEAK_MEMORY.title, then, peak_bytes, limit)
    return Judgement(changes=(change,), reason=describe(change))


def judge_peak(
    now: Measurement, stored: BaselineRow, limits: Limits, fresh: Sequence[Trial] | None
) -> Judgement:
    """Judge the peak of a measured row by its limit, and a growth by fresh processes.

    `fresh` are the row's fresh processes, None if confirmation was off; their median
    decides. A baseline of too few processes decides at once, as for speed.
    """
    peak = compare_peak(now.peak_memory_bytes, stored, limits)
    if not peak.worse or len(stored.samples) < THRESHOLDS.min_processes:
        return peak

    def judge(peaks: Sequence[float]) -> tuple[bool, str]:
        (change,) = compare_peak(median(peaks), stored, limits).changes
        return (
            change.worse,
            f"{PEAK_MEMORY.shown(change.current)} ({change.change:+.1%})",
        )

    results = (trial.row.measurement for trial in fresh or ())
    peaks = [one.peak_memory_bytes for one in results if one is not None]
    return decided(peak, "larger", fresh, peaks, judge)
