"""`llama-perf baseline record` and `show`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.cli.main import main
from llama_perf.gate import baselines
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import refusal
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]
OTHER = replace(CPU_ROW, compile=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "baselines"


def write_run(path: Path, *results: RowResult, device: str = "cpu-some-2c") -> str:
    """A run's results, as `run --json` keeps them."""
    report = Report(
        started="2026-01-02T03:04:05+00:00",
        environment=replace(ENVIRONMENT, device_key=device),
        results=results,
    )
    path.write_text(to_json(report), encoding="utf-8")
    return str(path)


def record(run: str, folder: Path, *options: str) -> int:
    words = ["baseline", "record", "--from", run, "--baselines", str(folder)]
    return main([*words, *options])


def show(folder: Path, *options: str) -> list[str]:
    return ["baseline", "show", "--baselines", str(folder), *options]


def test_rows_are_run_recorded_and_shown(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("--rows", str(project.path / "rows.toml"), "--baselines", str(folder))
    checkpoints = ("--checkpoints", str(project.path / "checkpoints"))
    assert main(["baseline", "record", *rows, *checkpoints]) == 0
    output = capsys.readouterr().out
    (key,) = baselines.keys(folder)
    path = baselines.path_of(folder, key)
    assert f"NOT_RUN {FP6}: scheme fp6 is not built on " in output
    assert f"recorded 2 rows in {path}\n1 rows were NOT_RUN, so nothing" in output
    stored = baselines.read(path)
    assert [row.id for row in stored.rows] == [PLAIN, INT8]
    for row in stored.rows:
        assert row.processes is not None
        assert len(row.processes) == 5
        assert all(len(process.sample_ns) == 2 for process in row.processes)
        speeds = sorted(process.tok_s for process in row.processes)
        assert row.measurement.tok_s == speeds[2]
        assert f"\n{row.id}: 5 processes differ by " in output

    assert main(show(folder)) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{key}: recorded {stored.recorded}\n")
    speed = stored.rows[0].measurement.tok_s
    assert re.search(rf"^none +{speed:.2f} .*MEASURED$", output, re.MULTILINE)
    assert "2 rows: 2 run, 0 NOT_RUN (2 MEASURED)" in output


def test_the_results_of_an_earlier_run_are_recorded(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = unmeasured(Status.NOT_RUN, "no card", CUDA_ROW)
    run = write_run(tmp_path / "run.json", measured(), refused)
    assert record(run, folder) == 0
    stored = baselines.read(folder / "cpu-some-2c" / "baseline.json")
    assert [row.measurement for row in stored.rows] == [measured().measurement]
    assert stored.environment == ENVIRONMENT
    assert "recorded 1 rows in " in capsys.readouterr().out


def test_rows_that_were_not_run_are_kept_unless_the_file_is_fresh(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = baselines.path_of(folder, ENVIRONMENT.device_key)
    one = write_run(tmp_path / "one.json", measured())
    other = write_run(tmp_path / "other.json", measured(OTHER))
    assert record(one, folder) == record(other, folder) == 0
    output = capsys.readouterr().out
    assert "1 rows of the file stay as they were (--fresh drops them)" in output
    assert {row.id for row in baselines.read(path).rows} == {CPU_ROW.id, OTHER.id}
    assert record(other, folder, "--fresh") == 0
    assert "stay as" not in capsys.readouterr().out
    assert [row.id for row in baselines.read(path).rows] == [OTHER.id]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([measured(), unmeasured(Status.INVALID, "it broke", OTHER)], "it broke"),
        ([measured(injected_slowdown=0.5)], "ran with an injected slowdown"),
        ([unmeasured(Status.NOT_RUN, "no card")], "no row was measured"),
    ],
)
def test_what_is_no_baseline_is_refused(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    results: list[RowResult],
    expected: str,
) -> None:
    run = write_run(tmp_path / "run.json", *results)
    words = ("baseline", "record", "--from", run, "--baselines", str(folder))
    message = refusal(capsys, *words)
    assert message.startswith("baseline: ")
    assert expected in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('"tok_s": 100.0', '"tok_s": NaN', "0.measurement.tok_s: Input should be a"),
        ('"tok_s": 100.0', '"tok_s": 1e999', "0.measurement.tok_s: Input should be a"),
        ('"tok_s": 100.0', '"tok_s": "fast"', "0.measurement.tok_s: Input should be a"),
        ('"tok_s": 100.0', '"tok_s": 0.0', "0.measurement: tok_s: 0.0 is not allowed"),
        ('"tok_s": 100.0', '"tok/s": 100.0', "0.measurement.tok/s: unknown field"),
        ('"model": "tiny"', '"modle": "tiny"', "0.row.modle: unknown field"),
    ],
)
@pytest.mark.parametrize("action", ["show", "record"])
def test_a_damaged_file_is_named_with_its_dotted_field(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    action: str,
    before: str,
    after: str,
    expected: str,
) -> None:
    path = tmp_path / "run.json"
    run = write_run(path, measured())
    if action == "show":
        assert record(run, folder) == 0
        path = baselines.path_of(folder, ENVIRONMENT.device_key)
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    words = ("baseline", "record", "--from", run, "--baselines", str(folder))
    message = refusal(capsys, *(show(folder) if action == "show" else words))
    rows = "rows" if action == "show" else "results"
    assert message.startswith(f"{path}: {rows}.{expected}")


def test_a_truncated_file_is_refused_and_replaced_only_by_a_fresh_one(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run.json", measured())
    assert record(run, folder) == 0
    path = baselines.path_of(folder, ENVIRONMENT.device_key)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    words = ("baseline", "record", "--from", run, "--baselines", str(folder))
    for command in (words, show(folder)):
        assert refusal(capsys, *command).startswith(f"{path}: Invalid JSON")
    assert path.read_bytes() == half
    assert record(run, folder, "--fresh") == 0
    assert len(baselines.read(path).rows) == 1


def test_one_device_of_several_is_shown_and_an_unknown_one_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, *show(folder, "--device", "cpu-a"))
    assert message == f"device: 'cpu-a' has no baseline in {folder}; allowed: none yet"
    for key in ("cpu-a", "cpu-b"):
        write_run(tmp_path / f"{key}.json", measured(), device=key)
        assert record(str(tmp_path / f"{key}.json"), folder) == 0
    message = refusal(capsys, *show(folder, "--device", "cpu-c"))
    assert message.endswith(f"has no baseline in {folder}; allowed: cpu-a, cpu-b")
    capsys.readouterr()
    assert main(show(folder, "--device", "cpu-b")) == 0
    output = capsys.readouterr().out
    assert output.startswith("cpu-b: recorded ")
    assert "cpu-a" not in output


def test_the_published_table_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("baseline", "show", "--device", baselines.REFERENCE_KEY)
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "43 rows: 43 run, 0 NOT_RUN (43 MEASURED)" in output
    assert " 107.38 " in output
