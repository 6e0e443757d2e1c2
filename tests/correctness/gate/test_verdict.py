"""The verdict on a row, by its speed, its sizes and the work of a decoding step."""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf.gate.verdict import not_compared
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.step_profile import count_work, load_profiler
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.measurement import OperatorTime, StepWork
from llama_perf.results.run import RowResult, Status, Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    FIXED_LIMIT,
    GB,
    MEASUREMENT,
    baseline_of,
    chosen,
    compare,
    measured,
    report_of,
    unmeasured,
)


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


HERE = measured()
OTHER = measured(replace(CPU_ROW, model="other"))
CHANGED = replace(measured(replace(CPU_ROW, num_samples=7)), id=CPU_ROW.id)
GGUF = measured(weights="gguf:a")
BROKEN = unmeasured(Status.INVALID, "it broke")
REFUSED = unmeasured(Status.NOT_RUN, "no card")
ABSENT = "the baseline of this device does not have this row"
ANOTHER = "the row changed under its id since the baseline was recorded"
WEIGHTS = "other weights: synthetic in the baseline, gguf:a now"
RAN_BEFORE = "no card; the baseline has this row, so it ran before"


@pytest.mark.parametrize(
    ("result", "stored", "verdict", "reason"),
    [
        (HERE, None, "NO_BASELINE", "no baseline for this device"),
        (HERE, OTHER, "NO_BASELINE", ABSENT),
        (CHANGED, HERE, "INCOMPARABLE", ANOTHER),
        (GGUF, HERE, "INCOMPARABLE", WEIGHTS),
        (BROKEN, None, "INVALID", "it broke"),
        (BROKEN, HERE, "INVALID", "it broke"),
        (REFUSED, None, "NOT_RUN", "no card"),
        (REFUSED, HERE, "NOT_RUN", RAN_BEFORE),
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


def test_a_metric_the_baseline_lacks_is_not_judged() -> None:
    then = baseline_of(measured(decode_tok_s=None, time_to_first_token_s=None))
    metrics = [change.metric for change in compare(measured(), then).changes]
    assert ", ".join(metrics) == (
        "tok/s, tok/s per GB/s of the device, peak memory, model size"
    )
    assert MEASUREMENT.device_bandwidth_share == 0.5


STEP_ROW = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=4)


def work(calls: float = 100.0, calls_each: float = 2.0, **times: float) -> StepWork:
    operators = tuple(
        OperatorTime(name=name, calls=calls_each, ms=ms) for name, ms in times.items()
    )
    return StepWork(calls=calls, ms=sum(times.values()), operators=operators)


def test_a_steps_calls_are_exact_and_its_products_are_there() -> None:
    prepared = prepare_row(STEP_ROW, checkpoints=None)
    first, second = count_work(prepared).step, count_work(prepared).step
    assert first is not None
    assert second is not None
    assert first.calls == second.calls > 0
    calls = {operator.name: operator.calls for operator in first.operators}
    assert (
        calls["llama_perf::packed_product"] >= prepared.engine.model.config.n_layers > 0
    )
    times = [operator.ms for operator in first.operators]
    assert times == sorted(times, reverse=True)
    assert first.ms >= sum(times)
    decodes_nothing = replace(STEP_ROW, max_new_tokens=1)
    assert count_work(prepare_row(decodes_nothing, checkpoints=None)).step is None


PEAK, TENSORS, SIZE = "peak_memory_bytes", "peak_allocated_bytes", "model_size_bytes"
MB = 10**6
COMPILE = "compile_s"
TWO = "1.000 GB -> 1.020 GB (+2.0%, limit 1.0%)"
SAME, LARGER, SMALLER = Verdict.SAME, Verdict.LARGER, Verdict.SMALLER


@pytest.mark.parametrize(
    ("row", "field", "then", "now", "verdict", "reason"),
    [
        (CUDA_ROW, PEAK, GB, 1020 * MB, LARGER, f"peak memory {TWO}"),
        (CUDA_ROW, PEAK, GB, 1011 * MB, LARGER, "peak memory 1.000 GB -> 1.011 GB (+1"),
        (CUDA_ROW, PEAK, GB, 1009 * MB, SAME, ""),
        (CUDA_ROW, TENSORS, GB, 1020 * MB, LARGER, f"allocated memory {TWO}"),
        (CUDA_ROW, TENSORS, GB, 1009 * MB, SAME, ""),
        (CPU_ROW, TENSORS, 100 * MB, 102 * MB, LARGER, "allocated memory 0.100 GB -> "),
        # A larger model is larger even at the same peak.
        (CPU_ROW, SIZE, 500 * MB, 501 * MB, LARGER, "model size 0.500 GB -> 0.501 GB"),
        # A small resident set may grow by the noise of any resident set, 32 MB.
        (CPU_ROW, PEAK, 100 * MB, 132 * MB - 1, SAME, ""),
        (CPU_ROW, PEAK, 100 * MB, 132 * MB + 10, LARGER, "peak memory 0.100 GB -> 0.1"),
        (CPU_ROW, PEAK, GB, GB // 2, SMALLER, "peak memory 1.000 GB -> 0.500 GB (-50"),
        (CPU_ROW, SIZE, GB, GB // 4, SMALLER, "model size 1.000 GB -> 0.250 GB (-75."),
        (CPU_ROW, "step", work(100), work(100.5), SAME, ""),
        (CPU_ROW, "step", work(100), work(103), LARGER, "calls a step 100 -> 103 (+3"),
        (CPU_ROW, "step", work(120), work(100), SAME, ""),
        (CPU_ROW, "step", None, work(100), SAME, ""),
        (CPU_ROW, "graph_breaks", 0, 1, LARGER, "graph breaks 0 -> 1"),
        (CPU_ROW, "compilations", 2, 5, LARGER, "compilations 2 -> 5"),
        (CPU_ROW, "compilations", 5, 2, SAME, ""),
        (CPU_ROW, "compilations", None, 2, SAME, ""),
        # Times to compile vary: they double, and by ten seconds, before they count.
        (CPU_ROW, COMPILE, 20.0, 41.0, LARGER, "time to compile (s) 20.0 -> 41.0 (+10"),
        (CPU_ROW, COMPILE, 20.0, 39.0, SAME, ""),
        (CPU_ROW, COMPILE, 2.0, 11.9, SAME, ""),
        (CPU_ROW, COMPILE, 2.0, 12.1, LARGER, "time to compile (s) 2.0 -> 12.1 (+505"),
        (CPU_ROW, COMPILE, 20.0, 1.0, SAME, ""),
        # Not compiled anew in one of the two.
        (CPU_ROW, COMPILE, 20.0, None, SAME, ""),
        (CPU_ROW, COMPILE, None, 20.0, SAME, ""),
    ],
)
def test_what_moves_beyond_its_limit_decides(
    row: RowSpec, field: str, then: Any, now: Any, verdict: Verdict, reason: str
) -> None:
    before = baseline_of(measured(row, **{field: then}))
    comparison = compare(measured(row, **{field: now}), before)
    assert (comparison.verdict, comparison.failed) == (verdict, verdict is LARGER)
    assert comparison.reason.startswith(reason or "within its limits: ")
    if verdict is not SAME:
        # No other metric moved.
        assert ";" not in comparison.reason
    if verdict is LARGER:
        end = {SIZE: "(+0.2%, limit 0.1%)", "step": "(+3.0%, limit 1%)"}.get(field, "")
        assert comparison.reason.endswith(end)


def test_other_formats_of_autoquant_may_take_other_calls() -> None:
    none, int8 = (chosen("none"),), (chosen("int8wo"),)
    then = baseline_of(measured(step=work(100), autoquant=none))
    for choices, verdict in ((int8, Verdict.SAME), (none, Verdict.LARGER)):
        now = measured(step=work(150), autoquant=choices)
        assert compare(now, then).verdict is verdict


def test_a_slower_row_says_which_operators_grew_and_how_to_run_it_again() -> None:
    then, now = work(1, 1.0, mm=1.0), work(3, 3.0, mm=3.0)
    comparison = compare(measured(step=now), baseline_of(measured(step=then)))
    assert comparison.why == ("grew: mm, 1.00 -> 3.00 ms a step in 1 -> 3 calls",)
    then = work(100, mm=5.0, softmax=1.0, copy=0.5)
    slower = measured(tok_s=50.0, step=work(100, mm=8.0, softmax=1.01, sort=2.0))
    comparison = compare(slower, baseline_of(measured(step=then)))
    assert comparison.verdict is Verdict.SLOWER
    assert comparison.why == (
        "grew: mm, 5.00 -> 8.00 ms a step",
        "new among the longest operators: sort, 2.00 ms in 2 calls",
    )
    words = ("llama-perf", "run", "--compare", "--set", "cpu")
    report = report_of(slower, again=words, comparisons=(comparison,))
    again = f"again: llama-perf run --compare --set cpu --row {CPU_ROW.id}"
    below = as_text(report).partition("\nSLOWER ")[2].splitlines()[1:4]
    assert below == [f"  {line}" for line in (*comparison.why, again)]
    assert f"  - {again}" in as_markdown(report)


def test_only_a_slower_row_shows_times_that_grew() -> None:
    then = baseline_of(measured(step=work(2, mm=5.0)))
    now = work(4, mm=8.0, sort=2.0)
    slower = compare(measured(tok_s=50.0, step=now), then)
    larger = compare(measured(step=now), then)
    assert (slower.verdict, larger.verdict) == (Verdict.SLOWER, LARGER)
    new = "new in a step: sort, 2.00 ms in 2 calls"
    assert slower.why == ("grew: mm, 5.00 -> 8.00 ms a step", new)
    assert larger.why == (new,)


def test_a_loss_outside_operators_is_named() -> None:
    # 4 ms a step more: operators take 0.5 of them.
    then, now = work(mm=5.0), work(mm=5.5)
    before = measured(step=then, decode_tok_s=125.0)
    after = measured(tok_s=50.0, step=now, decode_tok_s=1e3 / 12.0)
    assert compare(after, baseline_of(before)).why == (
        "grew: the time outside operators, by 3.50 ms a step",
        "grew: mm, 5.00 -> 5.50 ms a step",
    )


@pytest.mark.parametrize(
    ("cuda", "torn_down"), [("13.0", "1"), ("12.6", "1"), ("12.4", None), (None, None)]
)
def test_the_profilers_hooks_leave_the_driver_where_graphs_outlive_that(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, torn_down: str | None
) -> None:
    # Put back afterwards, though it is deleted first.
    monkeypatch.setenv("TEARDOWN_CUPTI", "0")
    monkeypatch.delenv("TEARDOWN_CUPTI")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    load_profiler.__wrapped__()
    assert os.environ.get("TEARDOWN_CUPTI") == torn_down
    os.environ["TEARDOWN_CUPTI"] = "0"
    load_profiler.__wrapped__()
    assert os.environ["TEARDOWN_CUPTI"] == "0", "a user's own is kept"
