"""`llama-perf baseline record` and `show`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.results import baselines
from llama_perf.results.run import RowResult, Status
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    measured,
    report_of,
    unmeasured,
)

pytest_plugins = ["pytester"]
OTHER = replace(CPU_ROW, compile=True)
KEY = ENVIRONMENT.device_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "baselines"


def record(
    folder: Path, *results: RowResult, key: str = KEY, rows: int = 0
) -> list[str]:
    """The words that store a run's results, as `run --json` keeps them."""
    environment = replace(ENVIRONMENT, device_key=key)
    report = report_of(*results, environment=environment, selected=rows)
    path = folder.parent / "run.json"
    path.write_text(to_json(report), encoding="utf-8")
    return ["baseline", "record", "--from", str(path), "--baselines", str(folder)]


def show(folder: Path, *options: str) -> list[str]:
    return ["baseline", "show", "--baselines", str(folder), *options]


def test_rows_are_run_recorded_shown_and_recorded_again(project: Project) -> None:
    words = project.words("baseline", "record")
    output, _ = project.cli(*words)
    folder = project.path / "baselines"
    (key,) = baselines.keys(folder)
    path = baselines.path_of(folder, key)
    assert f"NOT_RUN {FP6}: scheme fp6 is not built on " in output
    assert f"recorded 2 rows in {path}\nnot recorded, since NOT_RUN: 1 row\n" in output
    stored = baselines.read(path)
    assert [row.id for row in stored.rows] == [PLAIN, INT8]
    for row in stored.rows:
        assert row.processes is not None
        assert [len(process.sample_ns) for process in row.processes] == [2] * 5
        speeds = sorted(process.tok_s for process in row.processes)
        assert row.measurement.tok_s == speeds[2]
        assert f"\n{row.id}: 5 processes differ by " in output

    output, _ = project.cli(*show(folder))
    assert output.startswith(f"{key}: recorded {stored.recorded}\n")
    speed = stored.rows[0].measurement.tok_s
    assert re.search(rf"^none +{speed:.2f} .*MEASURED$", output, re.MULTILINE)
    assert "2 rows: 2 run, 0 NOT_RUN (2 MEASURED)" in output

    project.cli(*words, "--processes", "3", "--row", INT8)
    after = {row.id: row for row in baselines.read(path).rows}
    assert len(after[INT8].processes or ()) == 3
    assert after[PLAIN].processes == stored.rows[0].processes
    assert after[PLAIN].recorded is not None


def test_earlier_runs_are_recorded_and_kept(folder: Path, cli: CommandLine) -> None:
    path = baselines.path_of(folder, KEY)
    refused = unmeasured(Status.NOT_RUN, "no card", CUDA_ROW)
    output, _ = cli(*record(folder, measured(), refused))
    assert "recorded 1 row in " in output
    stored = baselines.read(path)
    assert [row.measurement for row in stored.rows] == [measured().measurement]
    assert stored.environment == ENVIRONMENT
    other = record(folder, measured(OTHER))
    output, _ = cli(*other)
    assert "kept, since not run: 1 row (--fresh drops those)" in output
    assert {row.id for row in baselines.read(path).rows} == {CPU_ROW.id, OTHER.id}
    output, _ = cli(*other, "--fresh")
    assert "since not run" not in output
    assert [row.id for row in baselines.read(path).rows] == [OTHER.id]


def test_what_is_no_baseline_is_refused(folder: Path, cli: CommandLine) -> None:
    message = cli.refusal(*record(folder, measured(), rows=3))
    stopped = "that run stopped before 2 of 3 rows; a part of a run is no baseline"
    assert message == f"{folder.parent}/run.json: {stopped}"
    assert not folder.exists()


def test_a_fresh_file_replaces_a_truncated_one(folder: Path, cli: CommandLine) -> None:
    words = record(folder, measured())
    cli(*words)
    path = baselines.path_of(folder, KEY)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    for command in (words, show(folder)):
        assert cli.refusal(*command).startswith(f"{path}: Invalid JSON")
    assert path.read_bytes() == half
    cli(*words, "--fresh")
    assert len(baselines.read(path).rows) == 1


def test_one_device_is_shown_or_refused(folder: Path, cli: CommandLine) -> None:
    folder.mkdir()
    for words in (show(folder), show(folder, "--device", "cpu-a")):
        assert cli.refusal(*words).startswith(f"baselines: {folder} has none yet; ")
    for key in ("cpu-a", "cpu-b"):
        cli(*record(folder, measured(), key=key))
    message = cli.refusal(*show(folder, "--device", "cpu-c"))
    assert message.endswith(
        f"has no baseline in {folder}; did you mean cpu-b? allowed: cpu-a, cpu-b"
    )
    output, _ = cli(*show(folder, "--device", "cpu-b"))
    assert output.startswith("cpu-b: recorded ")
    assert "cpu-a" not in output


def test_the_published_table_is_shown(cli: CommandLine) -> None:
    output, _ = cli("baseline", "show", "--device", baselines.REFERENCE_KEY)
    assert "43 rows: 43 run, 0 NOT_RUN (43 MEASURED)" in output
    assert " 107.38 " in output
