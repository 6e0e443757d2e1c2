"""Peak memory: one process makes a row suspicious, fresh processes decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.confirmation import Trial
from llama_perf.gate.judge_memory import stored_peak
from llama_perf.gate.limits import default_limits
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run.paired import Pairs, compare_pairs
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    INT8_CPU,
    baseline_of_processes,
    compare,
    confirming_run,
    measured,
    unmeasured,
)

GB = 1_000_000_000
LARGE, ALIKE = round(GB * 1.2), round(GB * 1.01)
# One process in a hole of its heap; the median is 1 GB.
PEAKS = (GB - 1000, GB, GB + 1000, GB, 2 * GB)


def with_peak(peak: int, row: RowSpec = CPU_ROW, **changes: object) -> RowResult:
    return measured(row, peak_memory_bytes=peak, **changes)


def baseline(peaks: Sequence[int] = PEAKS, *rows: RowSpec) -> Baseline:
    return baseline_of_processes(
        dict.fromkeys(rows or (CPU_ROW,), peaks), "peak_memory_bytes"
    )


def fresh(*peaks: int) -> list[Trial]:
    return [Trial(row=with_peak(peak)) for peak in peaks]


BROKEN = Trial(row=unmeasured(Status.INVALID, "it was ended by signal 9"))
GREW = "peak memory 1.000 GB -> 1.200 GB (+20.0%, limit 10.0%)"


@pytest.mark.parametrize(
    ("peak", "again", "verdict", "reason"),
    [
        (round(GB * 1.099), None, Verdict.SAME, ""),
        (LARGE, None, Verdict.UNDECIDED, f"{GREW}; looks larger; confirmation was off"),
        (
            LARGE,
            [*fresh(GB, GB), BROKEN],
            Verdict.UNDECIDED,
            f"{GREW}; looks larger; 2 of 5 fresh processes finished: INVALID: it was"
            " ended by signal 9",
        ),
        # The median of the fresh processes decides.
        (
            LARGE,
            fresh(ALIKE, LARGE, LARGE, LARGE, ALIKE),
            Verdict.LARGER,
            f"{GREW}; confirmed by 5 fresh processes: 1.200 GB (+20.0%)",
        ),
        (
            LARGE,
            fresh(ALIKE, LARGE, ALIKE, LARGE, ALIKE),
            Verdict.SAME,
            f"{GREW}; not confirmed by 5 fresh processes: 1.010 GB (+1.0%)",
        ),
    ],
)
def test_a_verdict_and_the_end_of_its_reason(
    peak: int, again: list[Trial] | None, verdict: Verdict, reason: str
) -> None:
    comparison = compare(with_peak(peak), baseline(), fresh=again)
    assert comparison.verdict is verdict
    assert comparison.reason.endswith(reason)
    start = "within its limits: tok/s " if verdict is Verdict.SAME else reason
    assert comparison.reason.startswith(start)
    assert comparison.suspicious_peak == comparison.doubtful == bool(reason)
    assert not comparison.suspicious
    worse = [change.metric for change in comparison.changes if change.worse]
    assert worse == ["peak memory"] * (verdict is Verdict.LARGER)


def test_two_percent_more_on_a_gpu_is_larger_if_every_process_has_it() -> None:
    then = baseline((GB,) * 10, CUDA_ROW)
    now = with_peak(round(GB * 1.02), CUDA_ROW)
    again = [Trial(row=now)] * 5
    assert compare(now, then, fresh=again).verdict is Verdict.LARGER
    assert compare(now, then, fresh=None).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_processes_in_a_baseline_have_a_fixed_limit(count: int) -> None:
    comparison = compare(with_peak(LARGE), baseline((GB,) * count))
    assert comparison.verdict is Verdict.LARGER
    assert not comparison.doubtful


def test_other_changes_are_reported_with_a_doubtful_peak() -> None:
    now = with_peak(LARGE, model_size_bytes=600_000_000)
    larger = compare(now, baseline())
    assert larger.verdict is Verdict.LARGER
    assert "model size" in larger.reason
    assert larger.reason.endswith("; looks larger; confirmation was off")
    faster = compare(with_peak(LARGE, tok_s=1e6), baseline(), fresh=fresh(*PEAKS))
    assert faster.verdict is Verdict.FASTER
    assert "not confirmed by 5 fresh processes: 1.000 GB" in faster.reason


def test_a_row_without_a_stored_peak_is_not_judged_by_it() -> None:
    comparison = compare(with_peak(GB), baseline((0, 0, 0)))
    assert comparison.verdict is Verdict.SAME
    assert "peak memory" not in {change.metric for change in comparison.changes}


PEAK = st.integers(1, 3 * GB)


@given(
    st.lists(PEAK, min_size=1, max_size=9), PEAK, st.none() | st.lists(PEAK, max_size=7)
)
def test_a_grown_peak_is_never_a_silent_pass(
    stored: list[int], now: int, again: list[int] | None
) -> None:
    then = baseline(tuple(stored))
    middle = median(stored)
    assert stored_peak(then.rows[0]) == middle
    limits = default_limits("cpu")
    limit = max(limits["peak_memory"], limits["peak_memory_bytes"] / middle)
    comparison = compare(
        with_peak(now), then, fresh=None if again is None else fresh(*again)
    )
    grew, judged_at_once = now / middle - 1 > limit, len(stored) < 3
    assert comparison.suspicious_peak == (grew and not judged_at_once)
    if not grew or judged_at_once:
        assert comparison.failed == grew
    elif again is None or len(again) < 5:
        assert comparison.verdict is Verdict.UNDECIDED
    else:
        assert comparison.failed == (median(again) / middle - 1 > limit)


def test_a_run_repeats_only_the_row_if_only_its_peak_is_in_doubt(
    tmp_path: Path,
) -> None:
    asked: list[tuple[RowSpec, RowSpec | None]] = []

    def confirm(row: RowSpec, unquantized: RowSpec | None) -> list[Trial]:
        asked.append((row, unquantized))
        return [Trial(row=with_peak(GB, row))] * 5

    run = confirming_run(baseline(PEAKS, CPU_ROW, INT8_CPU), tmp_path, confirm)
    assert run.add(with_peak(GB)).verdict is Verdict.SAME
    comparison = run.add(with_peak(2 * GB, INT8_CPU))
    assert asked == [(INT8_CPU, None)]
    assert comparison.verdict is Verdict.SAME
    assert comparison.doubtful


@pytest.mark.parametrize(
    ("peaks", "verdict"),
    [((GB, 3 * GB, GB), Verdict.SAME), ((2 * GB, 2 * GB, GB), Verdict.LARGER)],
)
def test_pairs_compare_the_medians_of_their_sides(
    peaks: Sequence[int], verdict: Verdict
) -> None:
    base, head = ([*map(with_peak, side)] for side in ((GB, GB, 3 * GB), peaks))
    pairs = Pairs(row=CPU_ROW, results={"base": base, "head": head})
    ((_, comparison),) = compare_pairs([pairs])
    assert comparison.verdict is verdict
    assert not comparison.doubtful
