"""Screen, confirm, decide: verdicts with a baseline of several processes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import geometric_mean, median

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_perf.gate import thresholds
from llama_perf.gate.evidence import Trial
from llama_perf.gate.judgements import limits_of, stored_peak
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.thresholds import Spread, as_share, confirm_limit, screen_limit
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import Status, Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    CUDA_ROW,
    GB,
    MEASUREMENT,
    OTHER,
    baseline_of_processes,
    compare,
    measured,
    unmeasured,
)

BASELINE = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE[::-1]})
BANDWIDTH = MEASUREMENT.device_bandwidth_gb_s or 0.0
TOK, PEAK = "tok_s", "peak_memory_bytes"


def stored_speed(baseline: Baseline) -> tuple[float, Spread | None]:
    """The first row's, by the bandwidth of the run: it is not quantized."""
    prepared, row_id = SpeedBaseline(baseline), baseline.rows[0].id
    mean = geometric_mean(prepared.speeds[Basis.BANDWIDTH][row_id])
    return mean, prepared.spreads[Basis.BANDWIDTH].get(row_id)


MEAN, SPREAD = stored_speed(BASELINE)
assert SPREAD is not None
TOK_S = MEAN * BANDWIDTH
SCREEN, CONFIRM = as_share(screen_limit(SPREAD)), as_share(confirm_limit(SPREAD))
DETECTED = thresholds.minimum_detectable(SPREAD)
# tok/s that only just are, and only just are not, what their names say.
SUSPICIOUS, UNSUSPICIOUS = (TOK_S * (1 - SCREEN * by) for by in (1.01, 0.99))
CONFIRMED, REFUTED = (TOK_S * (1 - CONFIRM * by) for by in (1.01, 0.99))

LARGE, SMALL = round(GB * 1.2), round(GB * 1.01)
# One process in a hole of its heap; the median is 1 GB.
PEAKS = (GB - 1000, GB, GB + 1000, GB, 2 * GB)


def peaks_of(peaks: Sequence[int], *rows: RowSpec) -> Baseline:
    return baseline_of_processes(dict.fromkeys(rows, peaks), PEAK)


def trials(metric: str, *values: float) -> list[Trial]:
    return [Trial(row=measured(CPU_ROW, **{metric: value})) for value in values]


def five(tok_s: float) -> list[Trial]:
    return trials(TOK, tok_s) * 5


INVALID, NOT_RUN = (
    [*trials(TOK, 100.0, 100.0), Trial(row=unmeasured(status, "exit code 1"))]
    for status in (Status.INVALID, Status.NOT_RUN)
)


def mean(by: float) -> str:
    """The mean of fresh processes that lost so many of the confirming limits."""
    tok_s = TOK_S * (1 - CONFIRM * by) / BANDWIDTH
    own = f"their mean confirms a loss above {CONFIRM:.1%}"
    return f"{tok_s:.3f} ({-CONFIRM * by:+.1%}; {own})"


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
    now = measured(CPU_ROW, **{metric: value})
    comparison = compare(now, stored, fresh=fresh)
    assert comparison.verdict is verdict
    assert comparison.reason.endswith(reason), comparison.reason
    worse = [change.metric for change in comparison.changes if change.worse]
    by_bandwidth = [Basis.BANDWIDTH.value] * (verdict is SLOWER)
    assert worse == by_bandwidth + ["peak memory"] * (verdict is LARGER)
    start = "within its limits: tok/s " if verdict is SAME else "tok/s 100.00 -> "
    if metric == TOK:
        assert comparison.minimum_detectable == DETECTED > SCREEN
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


ROWS = st.sampled_from([CPU_ROW, CUDA_ROW])
SPEEDS = st.lists(st.floats(90, 110), min_size=1, max_size=12)
AGAIN = st.none() | st.lists(st.floats(50, 150), max_size=5)


@given(ROWS, SPEEDS, SPEEDS, st.floats(50, 150) | st.floats(0.01, 1e6), AGAIN)
@example(CPU_ROW, [100.0], [100.0], 77.5, None)
@example(CPU_ROW, [100.0, 100.1], [100.0], 72.5, None)
@example(CUDA_ROW, [100.0], [100.0], 95.5, None)
@example(CUDA_ROW, [100.0], [100.0], 94.5, None)
@example(CUDA_ROW, [100.0], [100.0], 105.5, None)
def test_a_verdict_on_speed_is_never_a_silent_pass(
    row: RowSpec,
    ours: list[float],
    theirs: list[float],
    now: float,
    again: list[float] | None,
) -> None:
    baseline = baseline_of_processes({row: ours, replace(row, compile=True): theirs})
    fresh = None if again is None else trials(TOK, *again)
    comparison = compare(measured(row, tok_s=now), baseline, fresh=fresh)
    assert comparison.failed == (comparison.verdict in {SLOWER, UNDECIDED})
    (mean, spread), speed = stored_speed(baseline), now / BANDWIDTH
    if len(ours) < 3:
        # Too few processes have a fixed limit, and nothing else decides.
        moved, limit = thresholds.relative_change(speed, mean), limits_of(row)["tok_s"]
        assert (comparison.verdict is SLOWER) == (moved < -limit)
        assert (comparison.verdict is FASTER) == (moved > limit)
        assert comparison.failed == (moved < -limit)
        assert f"the baseline has {len(ours)} of the 3 processes" in comparison.reason
        assert comparison.minimum_detectable is None
        return
    assert spread is not None
    loss = thresholds.log_loss(speed, mean)
    assert comparison.suspicious == (loss > screen_limit(spread))
    assert loss > -math.log1p(-0.01) or not comparison.suspicious
    if not comparison.suspicious:
        assert comparison.verdict in {SAME, FASTER}
    elif again is None or len(again) < 5:
        assert comparison.verdict is UNDECIDED
    else:
        fresh_mean = geometric_mean([tok_s / BANDWIDTH for tok_s in again])
        slower = thresholds.log_loss(fresh_mean, mean) > confirm_limit(spread)
        assert comparison.verdict is (SLOWER if slower else SAME)


SIZES = st.integers(1, 3 * GB)


@given(
    ROWS,
    st.lists(SIZES, min_size=1, max_size=9),
    SIZES,
    st.none() | st.lists(SIZES, max_size=7),
)
def test_a_grown_peak_is_never_a_silent_pass(
    row: RowSpec, stored: list[int], now: int, again: list[int] | None
) -> None:
    then, middle = peaks_of(stored, row), median(stored)
    assert stored_peak(then.rows[0]) == middle
    limits = limits_of(row)
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
