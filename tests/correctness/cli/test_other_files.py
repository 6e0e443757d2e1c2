"""A file of one kind where another is read: a line says what it is, what reads it."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from llama_perf.gate.diff import diff_of
from llama_perf.results import recording
from llama_perf.results.baselines import path_of
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.plugin_project import ROWS, Project
from tests.correctness.support.record_samples import (
    baseline_of,
    measured,
    report_of,
    stored_in,
)

pytest_plugins = ["pytester"]
BASELINE, RESULTS = baseline_of(measured()), report_of(measured())
DIFF = diff_of([recording.of_baseline(BASELINE, source="it")] * 2)
SAVE = {"machine_info": {}, "benchmarks": [], "version": "5.2.3"}
# The text of each kind, and what is said of it.
KINDS = {
    "baseline": (to_json(BASELINE), "it is a baseline: `llama-perf diff FILE OTHER` c"),
    "diff": (to_json(DIFF), "it is a comparison that `llama-perf diff` wrote, which n"),
    "results": (to_json(RESULTS), "it has the results of a run: `llama-perf report FI"),
    "rows": (ROWS, "it is a file of rows: `llama-perf rows --rows FILE` lists them"),
    "save": (
        json.dumps({**SAVE, "llama_perf": json.loads(to_json(BASELINE))}),
        "it is a save of pytest-benchmark with rows of llama-perf: `pytest tests/perf"
        " --benchmark-compare=FILE` compares with it",
    ),
    "other save": (
        json.dumps(SAVE),
        "it is a save of pytest-benchmark: `pytest-benchmark compare FILE` prints it",
    ),
}
# The words that read a file, and the kind that they read.
READERS: dict[str, Callable[[str, Path], list[str]]] = {
    "results": lambda path, _: ["report", path],
    "results of --from": lambda path, folder: [
        *("baseline", "record", "--from", path, "--baselines", str(folder))
    ],
    "baseline": lambda path, folder: [
        *("baseline", "diff", path, "--baselines", str(folder))
    ],
    "baseline of a folder": lambda path, _: [
        *("baseline", "show", "--baselines", str(Path(path).parents[1]))
    ],
    "rows": lambda path, _: ["rows", "--rows", path],
    "rows of check": lambda path, _: ["baseline", "check", "--rows", path],
    "rows of run": lambda path, _: ["run", "--rows", path],
}


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        (kind, reader)
        for kind, reader in product(KINDS, READERS)
        if kind != reader.partition(" ")[0]
    ],
)
def test_another_kind_is_named(
    tmp_path: Path, cli: CommandLine, kind: str, reader: str
) -> None:
    stored_in(tmp_path / "baselines", BASELINE)
    text, words = KINDS[kind]
    path = path_of(tmp_path / "given", "cpu-some-2c")
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    message = cli.refusal(*READERS[reader](str(path), tmp_path / "baselines"))
    assert message.startswith(f"{path}: {words}")


def test_a_run_continues_no_baseline(project: Project) -> None:
    project.results.parent.mkdir()
    project.results.write_text(to_json(BASELINE), encoding="utf-8")
    words = ("run", *project.tiny_rows, "--results", str(project.results), "--resume")
    message = project.cli.refusal(*words)
    assert message.startswith(f"{project.results}: it is a baseline: ")


def test_a_run_is_compared_with_no_results(project: Project) -> None:
    path = project.path / "run.json"
    path.write_text(to_json(RESULTS), encoding="utf-8")
    result = project.pytester.runpytest(
        "tests/perf", *project.tiny_rows, f"--benchmark-compare={path}"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {path}: it has the results of a run: *"])


def test_text_that_is_no_json_is_shown_without_its_bytes(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff\xfe[[row]]")
    message = cli.refusal("report", str(path))
    assert message == f"{path}: Invalid JSON: expected value at line 1 column 1"
