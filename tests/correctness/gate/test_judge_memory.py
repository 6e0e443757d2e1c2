"""Peak memory: one process makes a row suspicious, fresh processes decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.baselines import baseline_row
from llama_perf.gate.confirmation import Trial
from llama_perf.gate.judge_memory import stored_peak
from llama_perf.gate.limits import default_limits
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run.paired import Pairs, compare_pairs
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    INT8_CPU,
    MEASUREMENT,
    baseline_of_processes,
    compare,
    confirming_run,
    measured,
    unmeasured,
)

GB = 1_000_000_000
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


def judged(peak: int, again: list[Trial] | None = None) -> Comparison:
    return compare(with_peak(peak), baseline(), fresh=again)


def test_a_stored_peak_is_the_median_of_its_processes() -> None:
    (row,) = baseline().rows
    assert stored_peak(row) == GB
    assert stored_peak(baseline_row(CPU_ROW, MEASUREMENT)) == 1_000_000_000


def test_a_peak_within_its_limit_raises_no_doubt() -> None:
    comparison = judged(round(GB * 1.099))
    assert comparison.verdict is Verdict.SAME
    assert not comparison.doubtful


def test_a_grown_peak_without_fresh_processes_is_undecided_and_fails() -> None:
    comparison = judged(round(GB * 1.2))
    assert comparison.verdict is Verdict.UNDECIDED
    assert comparison.failed
    assert comparison.suspicious_peak
    assert not comparison.suspicious
    assert comparison.reason == (
        "peak memory 1.000 GB -> 1.200 GB (+20.0%, limit 10.0%); looks larger;"
        " confirmation was off"
    )
    assert not any(change.worse for change in comparison.changes)


def test_the_median_of_the_fresh_processes_decides() -> None:
    large, same = round(GB * 1.2), round(GB * 1.01)
    larger = judged(large, fresh(same, large, large, large, same))
    assert larger.verdict is Verdict.LARGER
    assert larger.failed
    assert [change.metric for change in larger.changes if change.worse] == [
        "peak memory"
    ]
    message = "; confirmed by 5 fresh processes: 1.200 GB (+20.0%)"
    assert larger.reason.endswith(f"limit 10.0%){message}")
    refuted = judged(large, fresh(same, large, same, large, same))
    assert refuted.verdict is Verdict.SAME
    assert not refuted.failed
    assert refuted.doubtful
    message = "; not confirmed by 5 fresh processes: 1.010 GB (+1.0%)"
    assert refuted.reason.startswith("within its limits: tok/s ")
    assert refuted.reason.endswith(message)


def test_two_percent_more_on_a_gpu_is_larger_if_every_process_has_it() -> None:
    then = baseline((GB,) * 10, CUDA_ROW)
    now = with_peak(round(GB * 1.02), CUDA_ROW)
    again = [Trial(row=now)] * 5
    assert compare(now, then, fresh=again).verdict is Verdict.LARGER
    assert compare(now, then, fresh=None).verdict is Verdict.UNDECIDED


def test_fresh_processes_that_break_decide_nothing() -> None:
    broken = Trial(row=unmeasured(Status.INVALID, "it was ended by signal 9"))
    comparison = judged(2 * GB, [*fresh(GB, GB), broken])
    assert comparison.verdict is Verdict.UNDECIDED
    assert comparison.reason.endswith(
        "; looks larger; 2 of 5 fresh processes finished: INVALID: it was ended"
        " by signal 9"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_processes_in_a_baseline_have_a_fixed_limit(count: int) -> None:
    few = baseline((GB,) * count)
    comparison = compare(with_peak(round(GB * 1.2)), few)
    assert comparison.verdict is Verdict.LARGER
    assert not comparison.doubtful


def test_other_changes_are_reported_with_a_doubtful_peak() -> None:
    large = round(GB * 1.2)
    larger = compare(
        with_peak(large, model_size_bytes=600_000_000), baseline(), fresh=None
    )
    assert larger.verdict is Verdict.LARGER
    assert "model size" in larger.reason
    assert larger.reason.endswith("; looks larger; confirmation was off")
    faster = compare(with_peak(large, tok_s=1e6), baseline(), fresh=fresh(*PEAKS))
    assert faster.verdict is Verdict.FASTER
    assert "not confirmed by 5 fresh processes: 1.000 GB" in faster.reason


def test_a_row_without_a_stored_peak_is_not_judged_by_it() -> None:
    comparison = compare(with_peak(GB), baseline((0, 0, 0)))
    assert comparison.verdict is Verdict.SAME
    assert "peak memory" not in {change.metric for change in comparison.changes}


@given(
    st.lists(st.integers(1, 3 * GB), min_size=3, max_size=9),
    st.integers(1, 3 * GB),
    st.one_of(st.none(), st.lists(st.integers(1, 3 * GB), max_size=7)),
)
def test_a_grown_peak_is_never_a_silent_pass(
    stored: list[int], now: int, again: list[int] | None
) -> None:
    then = baseline(tuple(stored))
    middle = stored_peak(then.rows[0])
    limits = default_limits("cpu")
    limit = max(limits["peak_memory"], limits["peak_memory_bytes"] / middle)
    comparison = compare(
        with_peak(now), then, fresh=None if again is None else fresh(*again)
    )
    doubted = now / middle - 1 > limit
    assert comparison.suspicious_peak == doubted
    if not doubted:
        assert not comparison.failed
    elif again is None or len(again) < 5:
        assert comparison.verdict is Verdict.UNDECIDED
    else:
        peak = sorted(again)
        median = (peak[len(peak) // 2] + peak[(len(peak) - 1) // 2]) / 2
        assert comparison.failed == (median / middle - 1 > limit)


def test_a_run_repeats_only_the_row_if_only_its_peak_is_in_doubt(
    tmp_path: Path,
) -> None:
    asked: list[tuple[RowSpec, RowSpec | None]] = []

    def confirm(row: RowSpec, unquantized: RowSpec | None) -> list[Trial]:
        asked.append((row, unquantized))
        return [Trial(row=with_peak(GB, row))] * 5

    stored = baseline(PEAKS, CPU_ROW, INT8_CPU)
    run = confirming_run(stored, tmp_path, confirm)
    assert run.add(with_peak(GB)).verdict is Verdict.SAME
    comparison = run.add(with_peak(2 * GB, INT8_CPU))
    assert asked == [(INT8_CPU, None)]
    assert comparison.verdict is Verdict.SAME
    assert comparison.doubtful


def test_pairs_compare_the_medians_of_their_sides() -> None:
    base = [with_peak(peak) for peak in (GB, GB, 3 * GB)]
    for peaks, verdict in (
        ((GB, 3 * GB, GB), Verdict.SAME),
        ((2 * GB, 2 * GB, GB), Verdict.LARGER),
    ):
        head = [with_peak(peak) for peak in peaks]
        pairs = Pairs(row=CPU_ROW, results={"base": base, "head": head})
        ((_, comparison),) = compare_pairs([pairs])
        assert comparison.verdict is verdict
        assert not comparison.doubtful
