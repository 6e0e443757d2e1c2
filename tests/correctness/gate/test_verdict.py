from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_perf.gate.judgements import default_limits
from llama_perf.gate.verdict import not_compared
from llama_perf.results.run import RowResult, Status
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

SPEEDS = st.floats(0.01, 1e6)


@given(st.sampled_from([CPU_ROW, CUDA_ROW]), SPEEDS, SPEEDS)
@example(row=CPU_ROW, now=77.5, then=100.0)
@example(row=CPU_ROW, now=72.5, then=100.0)
@example(row=CUDA_ROW, now=95.5, then=100.0)
@example(row=CUDA_ROW, now=94.5, then=100.0)
def test_the_verdict_on_speed_follows_the_limit_and_nothing_else(
    row: RowSpec, now: float, then: float
) -> None:
    before = baseline_of(measured(row, tok_s=then))
    comparison = compare(measured(row, tok_s=now), before)
    moved, limit = now / then - 1, default_limits(row.device)["tok_s"]
    assert comparison.failed == (moved < -limit)
    assert (comparison.verdict is Verdict.SLOWER) == (moved < -limit)
    assert (comparison.verdict is Verdict.FASTER) == (moved > limit)


def test_the_reason_names_metric_baseline_current_change_and_limit() -> None:
    worse = measured(tok_s=60.0, peak_memory_bytes=2_000_000_000)
    comparison = compare(worse, baseline_of(measured()))
    assert (comparison.id, comparison.verdict) == (CPU_ROW.id, Verdict.SLOWER)
    assert comparison.reason == (
        "tok/s 100.00 -> 60.00 (-40.0%); tok/s per GB/s of the device 5.000 -> 3.000"
        f" (-40.0%, limit 25.0%){FIXED_LIMIT}; peak memory 1.000 GB -> 2.000 GB"
        " (+100.0%, limit 10.0%)"
    )


@pytest.mark.parametrize(("tok_s", "verdict"), [(60.0, "SLOWER"), (200.0, "FASTER")])
def test_a_change_of_speed_names_the_other_choices_of_autoquant(
    tok_s: float, verdict: str
) -> None:
    int8, none = chosen("int8wo"), chosen("none")
    before = baseline_of(measured(autoquant=(int8, chosen("none", columns=96))))
    now = measured(tok_s=tok_s, autoquant=(none, chosen("none", columns=96)))
    comparison = compare(now, before)
    assert comparison.verdict.value == verdict
    message = "; autoquant chose none instead of int8wo for 128 x 64"
    assert comparison.reason.endswith(f"%){FIXED_LIMIT}{message}")
    same = compare(measured(tok_s=tok_s, autoquant=(int8,)), before)
    assert "autoquant" not in same.reason


GB = 1_000_000_000
PEAK, TENSORS = "peak_memory_bytes", "peak_allocated_bytes"
SIZE = "model_size_bytes"
TWO = "1.000 GB -> 1.020 GB (+2.0%, limit 1.0%)"


@pytest.mark.parametrize(
    ("row", "metric", "then", "now", "reason"),
    [
        (CUDA_ROW, PEAK, 1.0, 1.02, f"peak memory {TWO}"),
        (CUDA_ROW, PEAK, 1.0, 1.011, "peak memory 1.000 GB -> 1.011 GB (+1.1%, lim"),
        (CUDA_ROW, PEAK, 1.0, 1.009, ""),
        (CUDA_ROW, TENSORS, 1.0, 1.02, f"allocated memory {TWO}"),
        (CUDA_ROW, TENSORS, 1.0, 1.009, ""),
        (CPU_ROW, TENSORS, 0.1, 0.102, "allocated memory 0.100 GB -> 0.102 GB (+2.0"),
        # A larger model is larger even at the same peak.
        (CPU_ROW, SIZE, 0.5, 0.501, "model size 0.500 GB -> 0.501 GB (+0.2%, limit 0"),
        # A small resident set may grow by the noise of any resident set, 32 MB.
        (CPU_ROW, PEAK, 0.1, 0.132 - 1e-9, ""),
        (CPU_ROW, PEAK, 0.1, 0.132 + 1e-8, "peak memory 0.100 GB -> 0.132 GB (+32.0%"),
    ],
)
def test_a_growth_beyond_its_limit_is_larger(
    row: RowSpec, metric: str, then: float, now: float, reason: str
) -> None:
    before, after = ({metric: round(size_gb * GB)} for size_gb in (then, now))
    comparison = compare(measured(row, **after), baseline_of(measured(row, **before)))
    assert comparison.failed == bool(reason)
    assert comparison.verdict is (Verdict.LARGER if reason else Verdict.SAME)
    assert comparison.reason.startswith(reason)
    assert "limit 0.1%" in comparison.reason or metric != SIZE


@pytest.mark.parametrize("smaller", [{PEAK: GB // 2}, {SIZE: GB // 4}])
def test_a_smaller_row_does_not_fail(smaller: dict[str, Any]) -> None:
    comparison = compare(measured(**smaller), baseline_of(measured()))
    assert (comparison.verdict, comparison.failed) == (Verdict.SMALLER, False)


OTHER = measured(replace(CPU_ROW, model="other"))
CHANGED = replace(measured(replace(CPU_ROW, num_samples=7)), id=CPU_ROW.id)
BROKEN = unmeasured(Status.INVALID, "it broke")
REFUSED = unmeasured(Status.NOT_RUN, "no CUDA device")


@pytest.mark.parametrize(
    ("result", "stored", "verdict", "reason"),
    [
        (measured(), None, "NO_BASELINE", "no baseline for this device"),
        (
            measured(),
            OTHER,
            "NO_BASELINE",
            "the baseline of this device does not have this row",
        ),
        (
            CHANGED,
            measured(),
            "INCOMPARABLE",
            "the row changed under its id since the baseline was recorded",
        ),
        (
            measured(weights="gguf:a"),
            measured(),
            "INCOMPARABLE",
            "other weights: synthetic in the baseline, gguf:a now",
        ),
        (BROKEN, None, "INVALID", "it broke"),
        (BROKEN, measured(), "INVALID", "it broke"),
        (REFUSED, None, "NOT_RUN", "no CUDA device"),
        (
            REFUSED,
            measured(),
            "NOT_RUN",
            "no CUDA device; the baseline has this row, so it ran before",
        ),
    ],
)
def test_a_row_that_is_not_compared(
    result: RowResult, stored: RowResult | None, verdict: str, reason: str
) -> None:
    baseline = None if stored is None else baseline_of(stored)
    for missing_fails in (True, False):
        comparison = compare(result, baseline, missing_fails=missing_fails)
        assert (comparison.verdict.value, comparison.reason) == (verdict, reason)
        # Without a baseline a row that cannot run passes, since it never ran.
        passes = result is REFUSED and stored is None
        passes = passes or (verdict == "NO_BASELINE" and not missing_fails)
        assert comparison.failed == (not passes)
    if result is BROKEN:
        assert not_compared(result) == comparison


def test_another_device_is_reported_and_judges_nothing() -> None:
    slow = measured(tok_s=1.0, peak_memory_bytes=9_000_000_000)
    other = replace(ENVIRONMENT, device_key="cpu-other-2c")
    comparison = compare(slow, baseline_of(measured()), environment=other)
    assert (comparison.verdict, comparison.failed) == (Verdict.INCOMPARABLE, False)
    assert comparison.reason == (
        "the baseline is of another device, cpu-some-2c, so nothing is judged: tok/s"
        " 100.00 -> 1.00 (-99.0%)"
    )
    assert "peak memory" in [change.metric for change in comparison.changes]
    assert {(change.limit, change.worse) for change in comparison.changes} == {
        (None, False)
    }


def test_changed_environments_are_named_field_by_field() -> None:
    new = replace(ENVIRONMENT, torch="2.14.0", commit="ba9876543210")
    assert ENVIRONMENT.changes(new) == ("torch: 2.13.0 -> 2.14.0",)
    assert ENVIRONMENT.changes(ENVIRONMENT) == ()


def test_a_metric_the_baseline_lacks_is_not_judged() -> None:
    then = baseline_of(measured(decode_tok_s=None, time_to_first_token_s=None))
    metrics = [change.metric for change in compare(measured(), then).changes]
    assert ", ".join(metrics) == (
        "tok/s, tok/s per GB/s of the device, peak memory, model size"
    )
    assert MEASUREMENT.device_bandwidth_share == 0.5
