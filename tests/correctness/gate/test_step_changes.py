"""The work of a decoding step: counted for a real row, and compared in words."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf.gate.limits import default_limits
from llama_perf.gate.step_changes import more_work, operators_that_grew
from llama_perf.measure.prepare import prepare
from llama_perf.measure.step_profile import load_profiler, step_work
from llama_perf.report.markdown import as_markdown
from llama_perf.report.text import as_text
from llama_perf.results.measurement import OperatorTime, StepWork
from llama_perf.results.run import Report
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    baseline_of,
    chosen,
    compare,
    measured,
)

ROW = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=4)


def work(calls: float = 100.0, **times: float) -> StepWork:
    operators = tuple(
        OperatorTime(name=name, calls=2.0, ms=ms) for name, ms in times.items()
    )
    return StepWork(calls=calls, ms=sum(times.values()), operators=operators)


def test_a_steps_calls_are_exact_and_its_products_are_there() -> None:
    prepared = prepare(ROW, checkpoints=None)
    first, second = step_work(prepared), step_work(prepared)
    assert first is not None
    assert second is not None
    assert first.calls == second.calls > 0
    products = [
        operator
        for operator in first.operators
        if operator.name in {"aten::mm", "aten::addmm"}
    ]
    assert products
    assert (
        sum(operator.calls for operator in products)
        >= prepared.engine.model.config.n_layers
    )
    assert [operator.ms for operator in first.operators] == sorted(
        (operator.ms for operator in first.operators), reverse=True
    )
    assert first.ms >= sum(operator.ms for operator in first.operators)


def test_a_row_that_decodes_nothing_has_no_step() -> None:
    assert step_work(prepare(replace(ROW, max_new_tokens=1), checkpoints=None)) is None


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({"step": work(100)}, {"step": work(100.5)}, []),
        (
            {"step": work(100)},
            {"step": work(120)},
            ["calls a step 100 -> 120 (+20.0%, limit 1%)"],
        ),
        ({"step": work(120)}, {"step": work(100)}, []),
        ({"step": None}, {"step": work(100)}, []),
        ({"graph_breaks": 0}, {"graph_breaks": 1}, ["graph breaks 0 -> 1"]),
        ({"compilations": 2}, {"compilations": 5}, ["compilations 2 -> 5"]),
        ({"compilations": 5}, {"compilations": 2}, []),
        ({"compilations": None}, {"compilations": 2}, []),
        (
            {"step": work(100), "autoquant": (chosen("none"),)},
            {"step": work(150), "autoquant": (chosen("int8wo"),)},
            [],
        ),
    ],
)
def test_more_work_is_reported(
    then: dict[str, Any], now: dict[str, Any], message: list[str]
) -> None:
    before, after = measured(**then).measurement, measured(**now).measurement
    assert before is not None
    assert after is not None
    assert more_work(after, before, default_limits("cpu")) == message


def test_more_work_fails_a_row_that_is_as_fast_as_ever() -> None:
    stored = baseline_of(measured(step=work(100, mm=5.0)))
    comparison = compare(measured(step=work(103, mm=5.0)), stored)
    assert comparison.verdict is Verdict.LARGER
    assert comparison.failed
    assert comparison.reason.startswith("calls a step 100 -> 103 (+3.0%, limit 1%)")


def test_a_slower_row_says_which_operators_grew_and_how_to_run_it_again() -> None:
    then = work(100, mm=5.0, softmax=1.0, copy=0.5)
    now = work(100, mm=8.0, softmax=1.01, sort=2.0)
    comparison = compare(
        measured(tok_s=50.0, step=now), baseline_of(measured(step=then))
    )
    assert comparison.verdict is Verdict.SLOWER
    assert comparison.why == (
        "grew: mm, 5.00 -> 8.00 ms a step",
        "new in a step: sort, 2.00 ms in 2 calls",
    )
    report = Report(
        started="2026-01-02T03:04:05+00:00",
        environment=ENVIRONMENT,
        again=("llama-perf", "run", "--compare", "--set", "cpu"),
        results=(measured(tok_s=50.0, step=now),),
        comparisons=(comparison,),
    )
    again = f"again: llama-perf run --compare --set cpu --row {CPU_ROW.id}"
    lines = as_text(report).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("SLOWER "))
    assert lines[start + 1 : start + 4] == [
        f"  {line}" for line in (*comparison.why, again)
    ]
    assert f"  - {again}" in as_markdown(report)


def test_changed_calls_are_reported_with_the_time() -> None:
    then = measured(
        step=StepWork(
            calls=1, ms=1, operators=(OperatorTime(name="mm", calls=1, ms=1),)
        )
    )
    now = measured(
        step=StepWork(
            calls=3, ms=3, operators=(OperatorTime(name="mm", calls=3, ms=3),)
        )
    )
    assert then.measurement is not None
    assert now.measurement is not None
    assert operators_that_grew(now.measurement, then.measurement) == (
        "grew: mm, 1.00 -> 3.00 ms a step in 1 -> 3 calls",
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
