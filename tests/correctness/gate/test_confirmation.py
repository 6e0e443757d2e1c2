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
from llama_perf.results.verdict import Comparison, Verdict
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
# On a CPU an unquantized row is compared by the bandwidth of the run.
BASIS = Basis.BANDWIDTH
BANDWIDTH = MEASUREMENT.device_bandwidth_gb_s or 0.0


def stored_speed(baseline: Baseline) -> StoredSpeed:
    speed = SpeedBaseline(baseline).speed(BASIS, CPU_ROW.id)
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


def judged(tok_s: float, again: list[Trial] | None = None) -> Comparison:
    return compare(measured(tok_s=tok_s), BASELINE, fresh=again)


def test_a_row_within_the_screen_is_the_same_and_reports_the_detectable_loss() -> None:
    comparison = judged(UNSUSPICIOUS)
    assert comparison.verdict is Verdict.SAME
    assert not comparison.suspicious
    assert comparison.reason.startswith("within its limits: tok/s 100.00 -> ")
    assert comparison.reason.endswith(f"limit {SCREEN:.1%})")
    assert comparison.minimum_detectable == SPEED.minimum_detectable > SCREEN


def test_a_suspicious_row_without_fresh_processes_is_undecided_and_fails() -> None:
    comparison = judged(SUSPICIOUS)
    assert comparison.verdict is Verdict.UNDECIDED
    assert comparison.failed
    assert comparison.reason.endswith("; looks slower; confirmation was off")
    allowed = compare(measured(tok_s=SUSPICIOUS), BASELINE, undecided_fails=False)
    assert allowed.verdict is Verdict.UNDECIDED
    assert not allowed.failed


def test_fresh_processes_decide() -> None:
    slower = judged(SUSPICIOUS, fresh(CONFIRMED))
    assert slower.verdict is Verdict.SLOWER
    assert slower.failed
    assert [change.worse for change in slower.changes[:2]] == [False, True]
    reason = f"; confirmed by 5 fresh processes: {CONFIRMED / BANDWIDTH:.3f} ("
    assert reason in slower.reason
    assert slower.reason.endswith(f"limit {CONFIRM:.1%})")
    same = judged(SUSPICIOUS, fresh(REFUTED))
    assert same.verdict is Verdict.SAME
    assert same.suspicious
    assert not same.failed
    assert "; not confirmed by 5 fresh processes: " in same.reason


def test_one_process_fails_no_row_however_slow_it_was() -> None:
    assert judged(1e-3, fresh(100.0)).verdict is Verdict.SAME


@pytest.mark.parametrize("status", [Status.INVALID, Status.NOT_RUN])
def test_fresh_processes_that_break_decide_nothing(status: Status) -> None:
    broken = unmeasured(status, "its process ended with code 1")
    again = [*fresh(100.0, 2), Trial(row=broken)]
    comparison = judged(SUSPICIOUS, again)
    assert comparison.verdict is Verdict.UNDECIDED
    assert comparison.failed
    assert comparison.reason.endswith(
        "; looks slower; 2 of 5 fresh processes finished:"
        f" {status.value}: its process ended with code 1"
    )
    assert judged(SUSPICIOUS, []).reason.endswith("0 of 5 fresh processes finished")


def test_larger_is_certain_while_speed_is_not() -> None:
    larger = measured(tok_s=SUSPICIOUS, model_size_bytes=600_000_000)
    for again, verdict in (
        (None, Verdict.LARGER),
        (fresh(REFUTED), Verdict.LARGER),
        (fresh(CONFIRMED), Verdict.SLOWER),
    ):
        comparison = compare(larger, BASELINE, undecided_fails=False, fresh=again)
        assert comparison.verdict is verdict
        assert comparison.failed
        assert "model size 0.500 GB -> 0.600 GB" in comparison.reason
        assert ("looks slower" in comparison.reason) == (again is None)


def test_faster_takes_more_than_a_screen_since_nothing_confirms_it() -> None:
    assert judged(TOK_S * (1 + SCREEN)).verdict is Verdict.SAME
    faster = judged(TOK_S * 1.5)
    assert faster.verdict is Verdict.FASTER
    assert not faster.failed


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_processes_have_a_fixed_limit(count: int) -> None:
    few = baseline_of_processes({CPU_ROW: (100.0, 100.1)[:count], OTHER: ALIKE})
    for tok_s, verdict in ((80.0, Verdict.SAME), (70.0, Verdict.SLOWER)):
        comparison = compare(measured(tok_s=tok_s), few)
        assert comparison.verdict is verdict
        assert f"; fixed limit: the baseline has {count} of the 3 " in comparison.reason
        assert comparison.minimum_detectable is None


def test_a_slower_row_reports_where_autoquant_chose_otherwise() -> None:
    before = replace(
        BASELINE.rows[0],
        measurement=replace(
            BASELINE.rows[0].measurement, autoquant=(chosen("int8wo"),)
        ),
    )
    baseline = replace(BASELINE, rows=(before, *BASELINE.rows[1:]))
    now = measured(tok_s=SUSPICIOUS, autoquant=(chosen("none"),))
    comparison = compare(now, baseline, fresh=fresh(CONFIRMED))
    assert comparison.reason.endswith(
        "; autoquant chose none instead of int8wo for 128 x 64"
    )


@given(
    st.lists(st.floats(90, 110), min_size=3, max_size=12),
    st.lists(st.floats(90, 110), min_size=3, max_size=12),
    st.floats(50, 150),
    st.one_of(st.none(), st.lists(st.floats(50, 150), max_size=5)),
)
def test_a_verdict_on_speed_is_never_a_silent_pass(
    ours: list[float], theirs: list[float], now: float, again: list[float] | None
) -> None:
    baseline = baseline_of_processes({CPU_ROW: ours, OTHER: theirs})
    speed = stored_speed(baseline)
    results = None
    if again is not None:
        results = [Trial(row=measured(tok_s=tok_s)) for tok_s in again]
    comparison = compare(measured(tok_s=now), baseline, fresh=results)
    loss = log_loss(now / BANDWIDTH, speed.mean)
    assert comparison.suspicious == (loss > screen_limit(speed.spread, speed.processes))
    assert loss > -math.log1p(-0.01) or not comparison.suspicious
    if not comparison.suspicious:
        assert comparison.verdict in {Verdict.SAME, Verdict.FASTER}
    elif again is None or len(again) < 5:
        assert comparison.verdict is Verdict.UNDECIDED
    else:
        mean = geometric_mean([tok_s / BANDWIDTH for tok_s in again])
        limit = confirm_limit(speed.spread, speed.processes)
        slower = log_loss(mean, speed.mean) > limit
        assert comparison.verdict is (Verdict.SLOWER if slower else Verdict.SAME)
    assert comparison.failed == (
        comparison.verdict in {Verdict.SLOWER, Verdict.UNDECIDED}
    )
