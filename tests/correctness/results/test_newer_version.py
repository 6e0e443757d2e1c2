"""A file of a newer llama-perf: one line says so, whichever command reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_perf.results import baselines
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.plugin_project import Project
from tests.correctness.support.record_samples import (
    ENVIRONMENT,
    baseline_of,
    edited,
    measured,
    report_of,
    stored_in,
)

pytest_plugins = ["pytester"]

NEWER = (
    "schema_version: 99 is not allowed; allowed: {}; a newer llama-perf wrote it:"
    " update this one, or read it with that one"
)
OF_RESULTS, OF_BASELINE = NEWER.format("1"), NEWER.format("1 or 2")
STORED = baseline_of(measured())


def newer(path: Path) -> Path:
    """The file with another version and what this one does not know."""
    document: Any = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"new_field": 1, "schema_version": 99}))
    return path


def test_results_of_a_newer_version(cli: CommandLine, tmp_path: Path) -> None:
    path, known = tmp_path / "run.json", tmp_path / "known.json"
    for one in (path, known):
        one.write_text(to_json(report_of(measured())), encoding="utf-8")
    newer(path)
    folder = tmp_path / "baselines"
    for words in (
        ["report", str(path)],
        ["report", str(known), str(path), "--format", "csv"],
        ["baseline", "record", "--baselines", str(folder), "--from", str(path)],
        ["run", "--set", "cpu", "--resume", "--results", str(path)],
    ):
        assert cli.refusal(*words) == f"{path}: {OF_RESULTS}"
    assert not folder.exists()
    edited(path, {"schema_version": 1})
    assert cli.refusal("report", str(path)) == f"{path}: new_field: unknown field"


def test_a_baseline_of_a_newer_version(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = newer(stored_in(tmp_path, STORED))
    for action in ("show", "diff"):
        words = ("baseline", action, "--baselines", str(tmp_path))
        assert cli.refusal(*words) == f"{path}: {OF_BASELINE}"
    out, _ = cli("baseline", "check", "--baselines", str(tmp_path), code=1)
    assert f"{path}: {OF_BASELINE}\n" in out
    known = ("run", "--compare", "--set", "cpu", "--baselines", str(tmp_path))
    monkeypatch.setattr(baselines, "path_of", lambda *_: path)
    assert cli.refusal(*known) == f"{path}: {OF_BASELINE}"
    assert ENVIRONMENT.device_key in str(path)


def test_pytest_says_the_same_of_the_file_it_compares_with(project: Project) -> None:
    path = newer(stored_in(project.path / "stored", STORED))
    assert f"{path}: {OF_BASELINE}" in project.refusal(f"--benchmark-compare={path}")
    save = project.path / "save.json"
    section = json.loads(path.read_text(encoding="utf-8"))
    save.write_text(json.dumps({"benchmarks": [], "llama_perf": section}))
    text = project.refusal(f"--benchmark-compare={save}")
    assert OF_BASELINE in text


@pytest.mark.parametrize("version", [0, -1, "x", None, [99]])
def test_what_no_llama_perf_wrote_is_not_newer(
    cli: CommandLine, tmp_path: Path, version: object
) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(report_of(measured())), encoding="utf-8")
    message = cli.refusal("report", str(edited(path, {"schema_version": version})))
    assert message.startswith(f"{path}: schema_version: ")
    assert message.endswith(" is not allowed; allowed: 1")
