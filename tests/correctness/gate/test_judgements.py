"""Screen, confirm, decide: verdicts with a baseline of several processes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import geometric_mean, median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.judgements import Trial, default_limits, stored_peak
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline, StoredSpeed
from llama_perf.gate.thresholds import as_share, confirm_limit, log_loss, screen_limit
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run.paired import Pairs, compare_pairs
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    MEASUREMENT,
    baseline_of_processes,
    chosen,
    compare,
    measured,
    unmeasured,
)

OTHER = replace(CPU_ROW, compile=True)
ALIKE = (99.0, 100.0, 101.0, 99.5, 100.5)
BASELINE = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE[::-1]})
BANDWIDTH = MEASUREMENT.device_bandwidth_gb_s or 0.0
TOK, PEAK = "tok_s", "peak_memory_bytes"


def stored_speed(baseline: Baseline) -> StoredSpeed:
    # On a CPU an unquantized row is compared by the bandwidth of the run.
    speed = SpeedBaseline(baseline).speed(Basis.BANDWIDTH, CPU_ROW.id)
    assert speed is not None
    return speed


SPEED = stored_speed(BASELINE)
TOK_S = SPEED.mean * BANDWIDTH
SCREEN = as_share(screen_limit(SPEED.spread, SPEED.processes))
CONFIRM = as_share(confirm_limit(SPEED.spread, SPEED.processes))
# tok/s that only just are, and only just are not, what their names say.
SUSPICIOUS, UNSUSPICIOUS = (TOK_S * (1 - SCREEN * by) for by in (1.01, 0.99))
CONFIRMED, REFUTED = (TOK_S * (1 - CONFIRM * by) for by in (1.01, 0.99))

GB = 1_000_000_000
LARGE, SMALL = round(GB * 1.2), round(GB * 1.01)
# One process in a hole of its heap; the median is 1 GB.
PEAKS = (GB - 1000, GB, GB + 1000, GB, 2 * GB)


def peaks_of(peaks: Sequence[int], *rows: RowSpec) -> Baseline:
    return baseline_of_processes(dict.fromkeys(rows, peaks), PEAK)


def result(metric: str, value: float) -> RowResult:
    changes: dict[str, Any] = {metric: value}
    return measured(**changes)


def trials(metric: str, *values: float) -> list[Trial]:
    return [Trial(row=result(metric, value)) for value in values]


def five(tok_s: float) -> list[Trial]:
    return trials(TOK, tok_s) * 5


INVALID, NOT_RUN = (
    [*trials(TOK, 100.0, 100.0), Trial(row=unmeasured(status, "exit code 1"))]
    for status in (Status.INVALID, Status.NOT_RUN)
)


def mean(by: float) -> str:
    """The mean of fresh processes that lost so many of the confirming limits."""
    tok_s = TOK_S * (1 - CONFIRM * by) / BANDWIDTH
    return f"{tok_s:.3f} ({-CONFIRM * by:+.1%}, limit {CONFIRM:.1%})"


SAME, SLOWER, LARGER = Verdict.SAME, Verdict.SLOWER, Verdict.LARGER
UNDECIDED, FASTER = Verdict.UNDECIDED, Verdict.FASTER
OFF, BY_5 = "confirmation was off", "confirmed by 5 fresh processes: "
LEFT = "of 5 fresh processes finished"
LOST = f", limit {SCREEN:.1%})"
SLOW = f"{LOST}; looks slower;"
GREW = "peak memory 1.000 GB -> 1.200 GB (+20.0%, limit 10.0%)"
BIG = f"{GREW}; looks larger;"
MOSTLY_LARGE = trials(PEAK, SMALL, LARGE, LARGE, LARGE, SMALL)
MOSTLY_SMALL = trials(PEAK, SMALL, LARGE, SMALL, LARGE, SMALL)


@pytest.mark.parametrize(
    ("metric", "value", "fresh", "verdict", "reason"),
    [
        (TOK, UNSUSPICIOUS, None, SAME, LOST),
        (TOK, SUSPICIOUS, None, UNDECIDED, f"{SLOW} {OFF}"),
        (TOK, SUSPICIOUS, [], UNDECIDED, f"{SLOW} 0 {LEFT}"),
        (TOK, SUSPICIOUS, INVALID, UNDECIDED, f"{SLOW} 2 {LEFT}: INVALID: exit code 1"),
        (TOK, SUSPICIOUS, NOT_RUN, UNDECIDED, f"{SLOW} 2 {LEFT}: NOT_RUN: exit code 1"),
        (TOK, SUSPICIOUS, five(CONFIRMED), SLOWER, f"{LOST}; {BY_5}{mean(1.01)}"),
        (TOK, SUSPICIOUS, five(REFUTED), SAME, f"{LOST}; not {BY_5}{mean(0.99)}"),
        # One process fails no row, however slow it was.
        (TOK, 1e-3, five(REFUTED), SAME, f"; not {BY_5}{mean(0.99)}"),
        # Faster takes more than a screen, since nothing confirms it.
        (TOK, TOK_S * (1 + SCREEN), None, SAME, LOST),
        (TOK, TOK_S * 1.5, None, FASTER, f"(+50.0%{LOST}"),
        (PEAK, round(GB * 1.099), None, SAME, ""),
        (PEAK, LARGE, None, UNDECIDED, f"{BIG} {OFF}"),
        (PEAK, LARGE, INVALID, UNDECIDED, f"{BIG} 2 {LEFT}: INVALID: exit code 1"),
        # The median of the fresh processes decides.
        (PEAK, LARGE, MOSTLY_LARGE, LARGER, f"{GREW}; {BY_5}1.200 GB (+20.0%)"),
        (PEAK, LARGE, MOSTLY_SMALL, SAME, f"{GREW}; not {BY_5}1.010 GB (+1.0%)"),
    ],
)
def test_a_verdict_and_the_end_of_its_reason(
    metric: str, value: float, fresh: list[Trial] | None, verdict: Verdict, reason: str
) -> None:
    stored = BASELINE if metric == TOK else peaks_of(PEAKS, CPU_ROW)
    comparison = compare(result(metric, value), stored, fresh=fresh)
    assert comparison.verdict is verdict
    assert comparison.reason.endswith(reason), comparison.reason
    worse = [change.metric for change in comparison.changes if change.worse]
    by_bandwidth = [Basis.BANDWIDTH.value] * (verdict is SLOWER)
    assert worse == by_bandwidth + ["peak memory"] * (verdict is LARGER)
    start = "within its limits: tok/s " if verdict is SAME else "tok/s 100.00 -> "
    if metric == TOK:
        assert comparison.minimum_detectable == SPEED.minimum_detectable > SCREEN
        assert not comparison.suspicious_peak
    else:
        assert comparison.suspicious_peak == comparison.doubtful == bool(reason)
        assert not comparison.suspicious
        start = start if verdict is SAME else GREW
    assert comparison.reason.startswith(start)


@pytest.mark.parametrize(
    ("size", "fresh", "verdict"),
    [
        (GB // 2, None, UNDECIDED),
        # Larger is certain while speed is not.
        (GB, None, LARGER),
        (GB, five(REFUTED), LARGER),
        (GB, five(CONFIRMED), SLOWER),
    ],
)
def test_only_what_is_undecided_may_be_allowed(
    size: int, fresh: list[Trial] | None, verdict: Verdict
) -> None:
    now = measured(tok_s=SUSPICIOUS, model_size_bytes=size)
    comparison = compare(now, BASELINE, undecided_fails=False, fresh=fresh)
    assert comparison.verdict is verdict
    assert comparison.failed == (verdict is not UNDECIDED)
    larger = "model size 0.500 GB -> 1.000 GB" in comparison.reason
    assert larger == (verdict is not UNDECIDED)
    assert ("looks slower" in comparison.reason) == (fresh is None)


def test_other_changes_are_reported_with_a_doubtful_peak() -> None:
    stored = peaks_of(PEAKS, CPU_ROW)
    now = measured(peak_memory_bytes=LARGE, model_size_bytes=GB)
    larger = compare(now, stored)
    assert larger.verdict is LARGER
    assert "model size" in larger.reason
    assert larger.reason.endswith("; looks larger; confirmation was off")
    now = measured(tok_s=1e6, peak_memory_bytes=LARGE)
    faster = compare(now, stored, fresh=trials(PEAK, *PEAKS))
    assert faster.verdict is FASTER
    assert "not confirmed by 5 fresh processes: 1.000 GB" in faster.reason
    without = compare(measured(), peaks_of((0, 0, 0), CPU_ROW))
    assert without.verdict is SAME
    assert "peak memory" not in {change.metric for change in without.changes}


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_processes_have_a_fixed_limit(count: int) -> None:
    few = baseline_of_processes({CPU_ROW: (100.0, 100.1)[:count], OTHER: ALIKE})
    for tok_s, verdict in ((80.0, SAME), (70.0, SLOWER)):
        comparison = compare(measured(tok_s=tok_s), few)
        assert comparison.verdict is verdict
        assert f"; fixed limit: the baseline has {count} of the 3 " in comparison.reason
        assert comparison.minimum_detectable is None


def test_a_slower_row_reports_where_autoquant_chose_otherwise() -> None:
    first, *rest = BASELINE.rows
    before = replace(first.measurement, autoquant=(chosen("int8wo"),))
    baseline = replace(BASELINE, rows=(replace(first, measurement=before), *rest))
    now = measured(tok_s=SUSPICIOUS, autoquant=(chosen("none"),))
    reason = compare(now, baseline, fresh=five(CONFIRMED)).reason
    assert reason.endswith("; autoquant chose none instead of int8wo for 128 x 64")


SPEEDS = st.lists(st.floats(90, 110), min_size=3, max_size=12)
AGAIN = st.none() | st.lists(st.floats(50, 150), max_size=5)


@given(SPEEDS, SPEEDS, st.floats(50, 150), AGAIN)
def test_a_verdict_on_speed_is_never_a_silent_pass(
    ours: list[float], theirs: list[float], now: float, again: list[float] | None
) -> None:
    baseline = baseline_of_processes({CPU_ROW: ours, OTHER: theirs})
    speed = stored_speed(baseline)
    fresh = None if again is None else trials(TOK, *again)
    comparison = compare(measured(tok_s=now), baseline, fresh=fresh)
    loss = log_loss(now / BANDWIDTH, speed.mean)
    assert comparison.suspicious == (loss > screen_limit(speed.spread, speed.processes))
    assert loss > -math.log1p(-0.01) or not comparison.suspicious
    if not comparison.suspicious:
        assert comparison.verdict in {SAME, FASTER}
    elif again is None or len(again) < 5:
        assert comparison.verdict is UNDECIDED
    else:
        fresh_mean = geometric_mean([tok_s / BANDWIDTH for tok_s in again])
        limit = confirm_limit(speed.spread, speed.processes)
        slower = log_loss(fresh_mean, speed.mean) > limit
        assert comparison.verdict is (SLOWER if slower else SAME)
    assert comparison.failed == (comparison.verdict in {SLOWER, UNDECIDED})


SIZES = st.integers(1, 3 * GB)


@given(
    st.sampled_from([CPU_ROW, CUDA_ROW]),
    st.lists(SIZES, min_size=1, max_size=9),
    SIZES,
    st.none() | st.lists(SIZES, max_size=7),
)
def test_a_grown_peak_is_never_a_silent_pass(
    row: RowSpec, stored: list[int], now: int, again: list[int] | None
) -> None:
    then, middle = peaks_of(stored, row), median(stored)
    assert stored_peak(then.rows[0]) == middle
    limits = default_limits(row.device)
    limit = max(limits["peak_memory"], limits["peak_memory_bytes"] / middle)
    fresh = None if again is None else trials(PEAK, *again)
    comparison = compare(measured(row, peak_memory_bytes=now), then, fresh=fresh)
    grew, is_judged_at_once = now / middle - 1 > limit, len(stored) < 3
    assert comparison.suspicious_peak == (grew and not is_judged_at_once)
    if not grew or is_judged_at_once:
        assert comparison.verdict is LARGER if grew else not comparison.failed
    elif again is None or len(again) < 5:
        assert comparison.verdict is UNDECIDED
    else:
        assert comparison.failed == (median(again) / middle - 1 > limit)


@pytest.mark.parametrize(("peaks", "verdict"), [((1, 3, 1), SAME), ((2, 2, 1), LARGER)])
def test_pairs_compare_the_medians_of_their_sides(
    peaks: Sequence[int], verdict: Verdict
) -> None:
    base, head = (
        [measured(peak_memory_bytes=gb * GB) for gb in side]
        for side in ((1, 1, 3), peaks)
    )
    pairs = Pairs(row=CPU_ROW, results={"base": base, "head": head})
    ((_, comparison),) = compare_pairs([pairs])
    assert comparison.verdict is verdict
    assert not comparison.doubtful
