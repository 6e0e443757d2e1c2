"""The schemas in `docs/schema/`: what the types give, and what real files are."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llama_perf.gate.diff import diff_of
from llama_perf.results import baselines, recording
from llama_perf.results.history import lines_of
from llama_perf.results.run import Verdict
from llama_perf.rows.limit_overrides import Limits
from llama_perf.strict_json import to_json, to_line
from scripts.doc_schema import COMMAND, FOLDER, drawn, main
from tests.correctness.support.plugin_project import Project
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    MEASUREMENT,
    baseline_of,
    baseline_of_processes,
    chosen,
    compare,
    measured,
    report_of,
)

pytest_plugins = ["pytester"]
ROW = replace(CPU_ROW, name="nightly", limits=Limits({"tok_s": 0.1}))


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(name: str, document: Any) -> list[str]:
    return [error.message for error in validator(name).iter_errors(document)]


def report() -> dict[str, Any]:
    """A compared run that has a value in most fields."""
    stored = baseline_of(measured(ROW))
    result = measured(ROW, tok_s=60.0, autoquant=(chosen("int8wo"),))
    document: dict[str, Any] = json.loads(
        to_json(
            report_of(
                result,
                comparisons=(compare(result, stored),),
                reference={ROW.id: MEASUREMENT},
            )
        )
    )
    return document


def test_the_schemas_are_those_of_the_types(capsys: pytest.CaptureFixture[str]) -> None:
    texts = drawn()
    assert {path.name for path in FOLDER.iterdir()} == texts.keys()
    for name, text in texts.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, COMMAND
    main([])
    assert capsys.readouterr().out == "".join(texts.values())


def test_the_results_of_a_run_are_what_the_schema_says(project: Project) -> None:
    project.record(tok_s=1e12)
    project.run("--benchmark-compare", failed=2, skipped=1)
    document = json.loads(project.results.read_text(encoding="utf-8"))
    assert [one["verdict"] for one in document["comparisons"]] == [
        *("SLOWER", "SLOWER", "NOT_RUN")
    ]
    assert problems("results.json", document) == []
    assert problems("results.json", report()) == []


def test_every_stored_baseline_is_what_the_schema_says() -> None:
    folder = baselines.baselines_folder()
    keys = baselines.keys(folder)
    assert keys
    texts = [baselines.path_of(folder, key).read_text(encoding="utf-8") for key in keys]
    texts.append(to_json(baseline_of_processes({ROW: ALIKE})))
    for text in texts:
        assert problems("baseline.json", json.loads(text)) == []


def test_a_comparison_is_what_the_schema_says() -> None:
    run = report_of(measured(ROW, tok_s=60.0, autoquant=(chosen("int8wo"),)))
    sides = (
        recording.of_baseline(baseline_of_processes({ROW: ALIKE}), source="old"),
        recording.of_report(run, source="new"),
    )
    assert problems("diff.json", json.loads(to_json(diff_of(sides)))) == []


def test_a_line_of_a_history_is_what_the_schema_says() -> None:
    stored = baseline_of(measured(ROW))
    slow = measured(ROW, tok_s=60.0, neighbours=("4242",))
    for run in (report_of(slow, comparisons=(compare(slow, stored),)), report_of(slow)):
        (line,) = lines_of(run)
        assert problems("history.json", json.loads(to_line(line))) == []
    assert problems("history.json", {}) != []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda report: report.update(schema_version=2), "1 was expected"),
        (lambda report: report.update(kind="x"), "'llama-perf report' was expected"),
        (lambda report: report.pop("environment"), "'environment' is a required"),
        (lambda report: report["results"][0].pop("row"), "'row' is a required"),
        (
            lambda report: report["results"][0]["measurement"].update(tok_s="fast"),
            "is not valid under any of the given schemas",
        ),
        (
            lambda report: report["comparisons"][0].update(verdict="BETTER"),
            f"'BETTER' is not one of {[verdict.value for verdict in Verdict]}",
        ),
    ],
)
def test_the_schema_refuses_what_is_no_result(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    document = report()
    change(document)
    (problem,) = problems("results.json", document)
    assert words in problem


def test_a_field_that_a_later_version_adds_is_no_problem() -> None:
    document = report()
    result = document["results"][0]
    for place in (document, result, result["row"], result["measurement"]):
        place["added_later"] = 1
    assert problems("results.json", document) == []
