"""Screen, confirm, decide: verdicts on speed with a baseline of several processes."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import geometric_mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.confirmation import Trial
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline, StoredSpeed
from llama_perf.gate.thresholds import as_share, confirm_limit, log_loss, screen_limit
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import Status
from llama_perf.results.verdict import Verdict
from tests.correctness.support.record_samples import (
    CPU_ROW,
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


def fresh(tok_s: float, count: int = 5) -> list[Trial]:
    return [Trial(row=measured(tok_s=tok_s))] * count


def broken(status: Status) -> list[Trial]:
    return [*fresh(100.0, 2), Trial(row=unmeasured(status, "exit code 1"))]


def mean(by: float) -> str:
    """The mean of fresh processes that lost so many of the confirming limits."""
    tok_s = TOK_S * (1 - CONFIRM * by) / BANDWIDTH
    return f"{tok_s:.3f} ({-CONFIRM * by:+.1%}, limit {CONFIRM:.1%})"


BY_5, FINISHED = "confirmed by 5 fresh processes: ", "of 5 fresh processes finished"
SAME, SLOWER, UNDECIDED = Verdict.SAME, Verdict.SLOWER, Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("tok_s", "again", "verdict", "reason"),
    [
        (UNSUSPICIOUS, None, SAME, f", limit {SCREEN:.1%})"),
        (SUSPICIOUS, None, UNDECIDED, "; looks slower; confirmation was off"),
        (SUSPICIOUS, [], UNDECIDED, f"; looks slower; 0 {FINISHED}"),
        (
            SUSPICIOUS,
            broken(Status.INVALID),
            UNDECIDED,
            f"; looks slower; 2 {FINISHED}: INVALID: exit code 1",
        ),
        (
            SUSPICIOUS,
            broken(Status.NOT_RUN),
            UNDECIDED,
            f"; looks slower; 2 {FINISHED}: NOT_RUN: exit code 1",
        ),
        (SUSPICIOUS, fresh(CONFIRMED), SLOWER, f"%); {BY_5}{mean(1.01)}"),
        (SUSPICIOUS, fresh(REFUTED), SAME, f"%); not {BY_5}{mean(0.99)}"),
        # One process fails no row, however slow it was.
        (1e-3, fresh(100.0), SAME, f"; not {BY_5}5.000 (+0.0%, limit {CONFIRM:.1%})"),
        # Faster takes more than a screen, since nothing confirms it.
        (TOK_S * (1 + SCREEN), None, SAME, f", limit {SCREEN:.1%})"),
        (TOK_S * 1.5, None, Verdict.FASTER, f"(+50.0%, limit {SCREEN:.1%})"),
    ],
)
def test_a_verdict_and_the_end_of_its_reason(
    tok_s: float, again: list[Trial] | None, verdict: Verdict, reason: str
) -> None:
    comparison = compare(measured(tok_s=tok_s), BASELINE, fresh=again)
    assert comparison.verdict is verdict
    assert comparison.reason.endswith(reason), comparison.reason
    within = "within its limits: " if verdict is SAME else ""
    assert comparison.reason.startswith(f"{within}tok/s 100.00 -> {tok_s:.2f} (")
    worse = [change.worse for change in comparison.changes[:2]]
    assert worse == [False, verdict is SLOWER]
    assert comparison.minimum_detectable == SPEED.minimum_detectable > SCREEN


@pytest.mark.parametrize(
    ("size", "again", "verdict"),
    [
        (5 * 10**8, None, UNDECIDED),
        # Larger is certain while speed is not.
        (6 * 10**8, None, Verdict.LARGER),
        (6 * 10**8, fresh(REFUTED), Verdict.LARGER),
        (6 * 10**8, fresh(CONFIRMED), SLOWER),
    ],
)
def test_only_what_is_undecided_may_be_allowed(
    size: int, again: list[Trial] | None, verdict: Verdict
) -> None:
    now = measured(tok_s=SUSPICIOUS, model_size_bytes=size)
    comparison = compare(now, BASELINE, undecided_fails=False, fresh=again)
    assert comparison.verdict is verdict
    assert comparison.failed == (verdict is not UNDECIDED)
    larger = "model size 0.500 GB -> 0.600 GB" in comparison.reason
    assert larger == (size > 5 * 10**8)
    assert ("looks slower" in comparison.reason) == (again is None)


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
    reason = compare(now, baseline, fresh=fresh(CONFIRMED)).reason
    assert reason.endswith("; autoquant chose none instead of int8wo for 128 x 64")


SPEEDS = st.lists(st.floats(90, 110), min_size=3, max_size=12)
AGAIN = st.none() | st.lists(st.floats(50, 150), max_size=5)


@given(SPEEDS, SPEEDS, st.floats(50, 150), AGAIN)
def test_a_verdict_on_speed_is_never_a_silent_pass(
    ours: list[float], theirs: list[float], now: float, again: list[float] | None
) -> None:
    baseline = baseline_of_processes({CPU_ROW: ours, OTHER: theirs})
    speed = stored_speed(baseline)
    results = [Trial(row=measured(tok_s=tok_s)) for tok_s in again or ()]
    trials = None if again is None else results
    comparison = compare(measured(tok_s=now), baseline, fresh=trials)
    loss = log_loss(now / BANDWIDTH, speed.mean)
    assert comparison.suspicious == (loss > screen_limit(speed.spread, speed.processes))
    assert loss > -math.log1p(-0.01) or not comparison.suspicious
    if not comparison.suspicious:
        assert comparison.verdict in {SAME, Verdict.FASTER}
    elif again is None or len(again) < 5:
        assert comparison.verdict is UNDECIDED
    else:
        fresh_mean = geometric_mean([tok_s / BANDWIDTH for tok_s in again])
        limit = confirm_limit(speed.spread, speed.processes)
        slower = log_loss(fresh_mean, speed.mean) > limit
        assert comparison.verdict is (SLOWER if slower else SAME)
    assert comparison.failed == (comparison.verdict in {SLOWER, UNDECIDED})
