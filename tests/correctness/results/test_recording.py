"""Any stored document as a recording: what is read, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.results import recording
from llama_perf.results.processes import ProcessSamples
from llama_perf.results.run import Status
from llama_perf.strict_json import to_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    OTHER,
    baseline_of,
    baseline_of_processes,
    compare,
    figures_of,
    measured,
    report_of,
    unmeasured,
)

STORED = baseline_of_processes({CPU_ROW: ALIKE})
REPORT = report_of(measured(), unmeasured(Status.NOT_RUN, "no room", OTHER))
SAVE: dict[str, Any] = {"benchmarks": [], "llama_perf": json.loads(to_json(STORED))}


@pytest.mark.parametrize(
    "text", [to_json(STORED), json.dumps(SAVE)], ids=["baseline", "save"]
)
def test_a_baseline_and_a_save_have_all_processes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "given"
    path.write_text(text, encoding="utf-8")
    found = recording.read(path)
    assert found.source == str(path)
    assert found.measured == STORED
    assert found.undone == {}
    assert len(found.rows[CPU_ROW.id].samples) == 5


def test_a_run_has_its_rows_and_how_the_others_ended() -> None:
    found = recording.parse(to_json(replace(REPORT, note="made up")), source="run")
    assert found.note == "made up"
    assert found.measured == baseline_of(measured())
    assert found.results() == {result.id: result for result in REPORT.results}


def test_fresh_processes_that_decided_on_a_row_are_its_figures() -> None:
    fresh = tuple(
        ProcessSamples(
            **{
                name: getattr(figures_of(CPU_ROW, tok_s=speed), name)
                for name in ProcessSamples.__dataclass_fields__
            }
        )
        for speed in ALIKE
    )
    decided = replace(compare(measured(), None), processes=fresh)
    for pairs, count in ((None, 5), (4, 1)):
        verdicts = (replace(decided, pairs=pairs),)
        report = report_of(measured(), comparisons=verdicts)
        (row,) = recording.of_report(report, source="run").rows.values()
        assert len(row.samples) == count, "processes of pairs share the machine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON: "),
        ("[]", "it is none of the kinds that can be read: the results of a run, a "),
        ('{"kind": "other"}', "it is none of the kinds that can be read: "),
        ('[[row]]\nmodel = "tiny"', "it is a file of rows: "),
        ('{"benchmarks": []}', "it holds no llama-perf records; save one with pytest "),
        (
            '{"kind": "llama-perf diff"}',
            "it is a comparison that `llama-perf diff` wrote, which nothing reads",
        ),
        (
            to_json(STORED).replace('"schema_version": 2', '"schema_version": 3'),
            "schema_version: 3 is not allowed; allowed: 1 or 2",
        ),
        (
            to_json(REPORT).replace('"schema_version": 1', '"schema_version": 2'),
            "schema_version: 2 is not allowed; allowed: 1",
        ),
        (to_json(replace(REPORT, selected=1)), "selected: 1 rows, and 2 have results"),
        (
            json.dumps(SAVE | {"llama_perf": {"kind": "llama-perf baseline"}}),
            "recorded: the field is missing",
        ),
    ],
)
def test_what_is_no_recording_is_one_line(text: str, message: str) -> None:
    refused = refusal(recording.parse, text, source="given", error=RecordError)
    assert refused.startswith(f"given: {message}")
