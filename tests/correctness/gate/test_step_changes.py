"""The work of a decoding step: counted for a real row, and compared in words."""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.step_profile import load_profiler, step_work
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.measurement import OperatorTime, StepWork
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import (
    CPU_ROW,
    baseline_of,
    chosen,
    compare,
    measured,
    report_of,
)

ROW = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=4)


def work(calls: float = 100.0, calls_each: float = 2.0, **times: float) -> StepWork:
    operators = tuple(
        OperatorTime(name=name, calls=calls_each, ms=ms) for name, ms in times.items()
    )
    return StepWork(calls=calls, ms=sum(times.values()), operators=operators)


def test_a_steps_calls_are_exact_and_its_products_are_there() -> None:
    prepared = prepare_row(ROW, checkpoints=None)
    first, second = step_work(prepared), step_work(prepared)
    assert first is not None
    assert second is not None
    assert first.calls == second.calls > 0
    products = [
        operator.calls
        for operator in first.operators
        if operator.name in {"aten::mm", "aten::addmm"}
    ]
    assert sum(products) >= prepared.engine.model.config.n_layers > 0
    times = [operator.ms for operator in first.operators]
    assert times == sorted(times, reverse=True)
    assert first.ms >= sum(times)


def test_a_row_that_decodes_nothing_has_no_step() -> None:
    assert (
        step_work(prepare_row(replace(ROW, max_new_tokens=1), checkpoints=None)) is None
    )


@pytest.mark.parametrize(
    ("field", "then", "now", "message"),
    [
        ("step", work(100), work(100.5), ""),
        ("step", work(100), work(103), "calls a step 100 -> 103 (+3.0%, limit 1%)"),
        ("step", work(120), work(100), ""),
        ("step", None, work(100), ""),
        ("graph_breaks", 0, 1, "graph breaks 0 -> 1"),
        ("compilations", 2, 5, "compilations 2 -> 5"),
        ("compilations", 5, 2, ""),
        ("compilations", None, 2, ""),
    ],
)
def test_more_work_fails_a_row_that_is_as_fast_as_ever(
    field: str, then: Any, now: Any, message: str
) -> None:
    comparison = compare(
        measured(**{field: now}), baseline_of(measured(**{field: then}))
    )
    assert comparison.verdict is (Verdict.LARGER if message else Verdict.SAME)
    assert comparison.failed == bool(message)
    assert comparison.reason == message or not message


def test_other_formats_of_autoquant_may_take_other_calls() -> None:
    none, int8 = (chosen("none"),), (chosen("int8wo"),)
    then = baseline_of(measured(step=work(100), autoquant=none))
    for choices, verdict in ((int8, Verdict.SAME), (none, Verdict.LARGER)):
        now = measured(step=work(150), autoquant=choices)
        assert compare(now, then).verdict is verdict


def test_a_slower_row_says_which_operators_grew_and_how_to_run_it_again() -> None:
    then = work(100, mm=5.0, softmax=1.0, copy=0.5)
    slower = measured(tok_s=50.0, step=work(100, mm=8.0, softmax=1.01, sort=2.0))
    comparison = compare(slower, baseline_of(measured(step=then)))
    assert comparison.verdict is Verdict.SLOWER
    assert comparison.why == (
        "grew: mm, 5.00 -> 8.00 ms a step",
        "new in a step: sort, 2.00 ms in 2 calls",
    )
    words = ("llama-perf", "run", "--compare", "--set", "cpu")
    report = report_of(slower, again=words, comparisons=(comparison,))
    again = f"again: llama-perf run --compare --set cpu --row {CPU_ROW.id}"
    below = as_text(report).partition("\nSLOWER ")[2].splitlines()[1:4]
    assert below == [f"  {line}" for line in (*comparison.why, again)]
    assert f"  - {again}" in as_markdown(report)


def test_changed_calls_are_reported_with_the_time() -> None:
    then, now = work(1, 1.0, mm=1.0), work(3, 3.0, mm=3.0)
    comparison = compare(measured(step=now), baseline_of(measured(step=then)))
    assert comparison.why == ("grew: mm, 1.00 -> 3.00 ms a step in 1 -> 3 calls",)


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
