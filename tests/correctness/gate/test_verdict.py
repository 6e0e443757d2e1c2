from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.limits import default_limits
from llama_perf.gate.verdict import not_compared
from llama_perf.results.run import Status
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    FIXED_LIMIT,
    MEASUREMENT,
    baseline_of,
    chosen,
    compare,
    measured,
    unmeasured,
)


@pytest.mark.parametrize("row", [CPU_ROW, CUDA_ROW], ids=["cpu", "cuda"])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_loss_of_speed_beyond_the_limit_is_slower(row: RowSpec, share: float) -> None:
    tok_s = 100.0 * (1 - default_limits(row.device)["tok_s"] * share)
    comparison = compare(measured(row, tok_s=tok_s), baseline_of(measured(row)))
    assert comparison.failed == (share > 1)
    assert comparison.verdict is (Verdict.SLOWER if share > 1 else Verdict.SAME)


def test_the_reason_names_metric_baseline_current_change_and_limit() -> None:
    comparison = compare(measured(tok_s=60.0), baseline_of(measured()))
    assert comparison.id == CPU_ROW.id
    message = (
        "tok/s 100.00 -> 60.00 (-40.0%); tok/s per GB/s of the device 5.000 -> 3.000"
        " (-40.0%, limit 25.0%)"
    )
    assert comparison.reason == message + FIXED_LIMIT


def test_a_change_of_speed_names_the_other_choices_of_autoquant() -> None:
    before = baseline_of(
        measured(autoquant=(chosen("int8wo"), chosen("none", columns=96)))
    )
    message = "autoquant chose none instead of int8wo for 128 x 64"
    for tok_s, verdict in ((60.0, Verdict.SLOWER), (200.0, Verdict.FASTER)):
        now = (chosen("none"), chosen("none", columns=96))
        comparison = compare(measured(tok_s=tok_s, autoquant=now), before)
        assert comparison.verdict is verdict
        assert comparison.reason.endswith(f"%){FIXED_LIMIT}; {message}")
        same = (chosen("int8wo"),)
        comparison = compare(measured(tok_s=tok_s, autoquant=same), before)
        assert "autoquant" not in comparison.reason


GB = 1_000_000_000
PEAK, TENSORS = "peak_memory_bytes", "peak_allocated_bytes"
SIZE = "model_size_bytes"
ALLOCATED, TWO = "allocated memory", "+2.0%, 1.0%"


@pytest.mark.parametrize(
    ("row", "metric", "then", "now", "values", "change"),
    [
        (CUDA_ROW, PEAK, 1.0, 1.011, "peak memory 1.000 GB -> 1.011 GB", "+1.1%, 1.0%"),
        (CUDA_ROW, PEAK, 1.0, 1.02, "peak memory 1.000 GB -> 1.020 GB", "+2.0%, 1.0%"),
        (CUDA_ROW, PEAK, 1.0, 1.009, "", ""),
        (CUDA_ROW, TENSORS, 1.0, 1.02, f"{ALLOCATED} 1.000 GB -> 1.020 GB", TWO),
        (CUDA_ROW, TENSORS, 1.0, 1.009, "", ""),
        (CPU_ROW, TENSORS, 0.1, 0.102, f"{ALLOCATED} 0.100 GB -> 0.102 GB", TWO),
        # A larger model is larger even at the same peak.
        (CPU_ROW, SIZE, 0.5, 0.501, "model size 0.500 GB -> 0.501 GB", "+0.2%, 0.1%"),
        # A small resident set may grow by the noise of any resident set, 32 MB.
        (CPU_ROW, PEAK, 0.1, 0.132 - 1e-9, "", ""),
        (
            CPU_ROW,
            PEAK,
            0.1,
            0.132 + 1e-8,
            "peak memory 0.100 GB -> 0.132 GB",
            "+32.0%, 32.0%",
        ),
    ],
)
def test_a_growth_beyond_its_limit_is_larger(
    row: RowSpec, metric: str, then: float, now: float, values: str, change: str
) -> None:
    before, after = ({metric: round(size_gb * GB)} for size_gb in (then, now))
    comparison = compare(measured(row, **after), baseline_of(measured(row, **before)))
    assert comparison.failed == bool(values)
    assert comparison.verdict is (Verdict.LARGER if values else Verdict.SAME)
    assert not values or comparison.reason == f"{values} ({change})".replace(
        ", ", ", limit "
    )


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ({"tok_s": 200.0}, Verdict.FASTER),
        ({PEAK: 500_000_000}, Verdict.SMALLER),
        ({SIZE: 250_000_000}, Verdict.SMALLER),
    ],
)
def test_a_better_row_does_not_fail(better: dict[str, Any], verdict: Verdict) -> None:
    comparison = compare(measured(**better), baseline_of(measured()))
    assert comparison.verdict is verdict
    assert not comparison.failed


def test_a_slower_and_larger_row_gives_both_reasons() -> None:
    worse = measured(tok_s=10.0, peak_memory_bytes=2_000_000_000)
    comparison = compare(worse, baseline_of(measured()))
    assert comparison.verdict is Verdict.SLOWER
    assert "tok/s" in comparison.reason
    assert "peak memory" in comparison.reason


@pytest.mark.parametrize("missing_fails", [True, False])
def test_no_baseline_fails_unless_it_is_allowed(missing_fails: bool) -> None:
    other = baseline_of(measured(replace(CPU_ROW, model="other")))
    for baseline, reason in (
        (None, "no baseline for this device"),
        (other, "the baseline of this device does not have this row"),
    ):
        comparison = compare(measured(), baseline, missing_fails=missing_fails)
        assert comparison.verdict is Verdict.NO_BASELINE
        assert comparison.failed is missing_fails
        assert comparison.reason == reason


def test_what_does_not_compare_is_never_a_pass() -> None:
    changed = replace(CPU_ROW, num_samples=7)
    renamed = replace(measured(changed), id=CPU_ROW.id)
    for result, reason in (
        (renamed, "the row changed under its id"),
        (measured(weights="gguf:other.gguf"), "other weights: synthetic in"),
    ):
        comparison = compare(result, baseline_of(measured()), missing_fails=False)
        assert comparison.verdict is Verdict.INCOMPARABLE
        assert comparison.failed
        assert reason in comparison.reason


def test_another_device_is_reported_and_judges_nothing() -> None:
    slow = measured(tok_s=1.0, peak_memory_bytes=9_000_000_000)
    other = replace(ENVIRONMENT, device_key="cpu-other-2c")
    comparison = compare(slow, baseline_of(measured()), environment=other)
    assert comparison.verdict is Verdict.INCOMPARABLE
    assert not comparison.failed
    assert comparison.reason == (
        "the baseline is of another device, cpu-some-2c, so nothing is judged: tok/s"
        " 100.00 -> 1.00 (-99.0%)"
    )
    assert {change.metric: change.limit for change in comparison.changes}[
        "peak memory"
    ] is None
    assert not any(change.worse for change in comparison.changes)


def test_a_row_that_is_invalid_fails_with_or_without_a_comparison() -> None:
    broken = unmeasured(Status.INVALID, "it broke")
    for comparison in (
        compare(broken, None, missing_fails=False),
        not_compared(broken),
    ):
        assert comparison.verdict is Verdict.INVALID
        assert comparison.failed
        assert comparison.reason == "it broke"


def test_a_row_that_cannot_run_fails_only_where_it_ran_before() -> None:
    refused = unmeasured(Status.NOT_RUN, "no CUDA device")
    known = compare(refused, baseline_of(measured()))
    unknown = compare(refused, None)
    assert known.verdict is unknown.verdict is Verdict.NOT_RUN
    assert known.failed
    assert "it ran before" in known.reason
    assert not unknown.failed


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_the_verdict_on_speed_follows_the_limit_and_nothing_else(
    now: float, then: float
) -> None:
    comparison = compare(measured(tok_s=now), baseline_of(measured(tok_s=then)))
    moved = now / then - 1
    limit = default_limits("cpu")["tok_s"]
    assert comparison.failed == (moved < -limit)
    assert (comparison.verdict is Verdict.FASTER) == (moved > limit)


def test_changed_environments_are_named_field_by_field() -> None:
    new = replace(ENVIRONMENT, torch="2.14.0", commit="ba9876543210")
    assert ENVIRONMENT.changes(new) == ("torch: 2.13.0 -> 2.14.0",)
    assert ENVIRONMENT.changes(ENVIRONMENT) == ()


def test_a_metric_the_baseline_lacks_is_not_judged() -> None:
    then = baseline_of(measured(decode_tok_s=None, time_to_first_token_s=None))
    comparison = compare(measured(), then)
    assert [change.metric for change in comparison.changes] == [
        "tok/s",
        "tok/s per GB/s of the device",
        "peak memory",
        "model size",
    ]
    assert MEASUREMENT.device_bandwidth_share == 0.5
