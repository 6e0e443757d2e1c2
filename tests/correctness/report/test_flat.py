"""CSV and JSON Lines: a line for each row, with the same fields, which stands alone."""

import csv
import json
from dataclasses import replace
from typing import Any

import pytest

from llama_perf import report
from llama_perf.metrics import METRICS
from llama_perf.results.measurement import StepWork
from llama_perf.results.run import Status
from tests.correctness.support.record_samples import (
    CLOSENESS,
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    MEASUREMENT,
    OTHER,
    RECORDED,
    baseline_of,
    compare,
    measured,
    report_of,
    unmeasured,
)

STEP = StepWork(calls=30, ms=2.0, operators=())
SLOWER = measured(replace(CPU_ROW, name="nightly"), tok_s=60.125, step=STEP)
RESULTS = (
    SLOWER,
    unmeasured(Status.INVALID, 'a, "b"', OTHER),
    unmeasured(Status.NOT_RUN, "no card", CUDA_ROW),
)
RUN = report_of(
    *RESULTS,
    comparisons=tuple(compare(one, baseline_of(measured())) for one in RESULTS[:2]),
    note="made up",
)


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.draw(RUN, "jsonl").splitlines()]


def test_a_line_has_the_verdict_and_every_figure_unrounded() -> None:
    slower, broken, refused = lines()
    expected = {
        "id": CPU_ROW.id,
        "name": "nightly",
        "status": "MEASURED",
        "verdict": "SLOWER",
        "failed": True,
        "disturbed": None,
        "tok_s": 60.125,
        "weights": "synthetic",
        "calls": 30.0,
        "peak_memory_bytes": 10**9,
        "sample_spread": pytest.approx(0.025),
    }
    assert {name: slower[name] for name in expected} == expected
    assert slower["reason"].startswith("tok/s 100.00 -> 60.12 (-39.9%); ")
    assert (broken["verdict"], broken["reason"]) == ("INVALID", 'a, "b"')
    assert (refused["status"], refused["verdict"]) == ("NOT_RUN", None)
    assert (refused["failed"], refused["tok_s"]) == (None, None)
    assert refused["reason"] == "no card"


def test_a_figure_that_has_a_metric_is_in_every_line() -> None:
    for metric in METRICS:
        assert lines()[0][metric.field] == metric.read(SLOWER.measurement)
    # Two figures are dB of closeness.
    both = report_of(measured(closeness_db=27.8, closeness=CLOSENESS))
    (line,) = map(json.loads, report.draw(both, "jsonl").splitlines())
    assert (line["closeness_db"], line["text_closeness_db"]) == (27.8, 12.0)
    plain = {"first_token_ns", "sample_ns", "step", "ceiling", "autoquant"}
    assert not plain & lines()[0].keys()


def test_a_line_stands_alone() -> None:
    for line, result in zip(lines(), RESULTS, strict=True):
        assert (line["started"], line["note"]) == (RECORDED, "made up")
        for name in ("commit", "device_key", "device_name", "torch", "torchao"):
            assert line[name] == getattr(ENVIRONMENT, name)
        for name, value in result.row.work.items():
            assert line[name] == value
        # Nothing is nested, for tables.
        assert all(not isinstance(value, list | dict) for value in line.values())


def test_csv_has_the_same_fields_in_the_same_order() -> None:
    text = report.draw(RUN, "csv")
    assert text.startswith("id,name,status,verdict,failed,reason,disturbed,tok_s,")
    for shown, line in zip(csv.DictReader(text.splitlines()), lines(), strict=True):
        assert list(shown) == list(line)
        for name, value in line.items():
            assert shown[name] == ("" if value is None else str(value))
    assert MEASUREMENT.weights in text
