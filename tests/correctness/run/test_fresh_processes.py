"""Rows in several fresh processes: their order, and what ends a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.cli.main import main
from llama_perf.errors import RecordError, SpecError
from llama_perf.gate import baselines
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.fresh_processes import (
    check_processes,
    default_processes,
    in_fresh_processes,
)
from llama_perf.run.request import RunOptions
from tests.correctness.support.command_line import refusal
from tests.correctness.support.plugin_project import INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]
OTHER = replace(CPU_ROW, compile=True)
Process = Callable[[int, RowSpec], tuple[RowResult, Environment | None]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[Process], list[str]]:
    """Have `process(number, row)` stand for every process; returns those started."""

    def stand_in(process: Process) -> list[str]:
        ids: list[str] = []

        def run(
            row: RowSpec, *, options: RunOptions, devices: Iterable[str]
        ) -> worker.WorkerResult:
            assert set(devices) <= {"cpu", "cuda"}
            assert options == RunOptions()
            ids.append(row.id)
            result, environment = process(ids.count(row.id), row)
            return worker.WorkerResult(result=result, environment=environment)

        monkeypatch.setattr(worker, "run_in_process", run)
        return ids

    return stand_in


def record(*rows: RowSpec, processes: int = 3) -> list[RowResult]:
    ended = in_fresh_processes(rows, processes=processes, options=RunOptions())
    return [result for result, _ in ended]


def test_rows_take_turns(started: Callable[[Process], list[str]]) -> None:
    ids = started(lambda number, row: (measured(row, tok_s=number), ENVIRONMENT))
    results = record(CPU_ROW, OTHER)
    assert ids == [CPU_ROW.id, OTHER.id] * 3
    speeds = [result.measurement.tok_s for result in results if result.measurement]
    assert speeds == [1, 1, 2, 2, 3, 3]


def test_a_row_that_cannot_run_is_tried_once(
    started: Callable[[Process], list[str]],
) -> None:
    refused = unmeasured(Status.NOT_RUN, "no card", CUDA_ROW)
    ids = started(
        lambda _, row: (refused if row == CUDA_ROW else measured(row), ENVIRONMENT)
    )
    record(CUDA_ROW, CPU_ROW)
    assert ids == [CUDA_ROW.id, *[CPU_ROW.id] * 3]


def test_the_first_broken_process_ends_it_with_its_row_and_its_words(
    started: Callable[[Process], list[str]],
) -> None:
    broken = unmeasured(Status.INVALID, "its process was ended by signal 9: Oh", OTHER)
    ids = started(
        lambda number, row: (
            (broken, None)
            if row == OTHER and number == 2
            else (measured(row), ENVIRONMENT)
        )
    )
    with pytest.raises(RecordError) as caught:
        record(CPU_ROW, OTHER)
    assert str(caught.value) == (
        f"baseline: {OTHER.id} is INVALID in process 2 of 3: its process was ended by"
        " signal 9: Oh"
    )
    assert len(ids) == 4


def test_an_environment_that_changes_ends_it(
    started: Callable[[Process], list[str]],
) -> None:
    newer = replace(ENVIRONMENT, torch="2.14.0")
    started(lambda n, row: (measured(row), newer if n == 2 else ENVIRONMENT))
    with pytest.raises(RecordError, match=r"torch: 2\.13\.0 -> 2\.14\.0"):
        record(CPU_ROW)


def test_how_many_processes_there_are() -> None:
    assert default_processes([CPU_ROW]) == 5
    assert default_processes([CPU_ROW, CUDA_ROW]) == 10
    check_processes(1)
    for number in (0, -1, 1001):
        with pytest.raises(SpecError, match=f"processes: {number} is not allowed"):
            check_processes(number)


def command(project: Project, *options: str) -> list[str]:
    return project.words("baseline", "record", *options)


def stored(project: Project) -> Path:
    (key,) = baselines.keys(project.path / "baselines")
    return baselines.path_of(project.path / "baselines", key)


def test_some_rows_are_recorded_again_and_the_others_stay(project: Project) -> None:
    assert main(command(project, "--processes", "2")) == 0
    before = {row.id: row for row in baselines.read(stored(project)).rows}
    assert main(command(project, "--processes", "3", "--row", INT8)) == 0
    after = {row.id: row for row in baselines.read(stored(project)).rows}
    assert len(after[INT8].processes or ()) == 3
    assert after[PLAIN].processes == before[PLAIN].processes
    assert after[PLAIN].recorded is not None


@pytest.mark.parametrize("ending", ["breaks", "is interrupted"])
def test_a_recording_that_ends_early_leaves_the_old_baseline(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: str,
) -> None:
    assert main(command(project, "--processes", "1")) == 0
    before = stored(project).read_bytes()
    original, count = worker.run_in_process, 0

    def run(row: RowSpec, **arguments: Any) -> worker.WorkerResult:
        nonlocal count
        count += 1
        if count < 5:
            return original(row, **arguments)
        if ending == "is interrupted":
            raise KeyboardInterrupt
        broken = unmeasured(Status.INVALID, "its process ended with code 1: Oh", row)
        return worker.WorkerResult(result=broken, environment=None)

    monkeypatch.setattr(worker, "run_in_process", run)
    words = command(project, "--processes", "3")
    if ending == "is interrupted":
        assert main(words) == 130
    else:
        assert "INVALID in process 2 of 3" in refusal_of(capsys, words)
    assert count == 5
    assert stored(project).read_bytes() == before
    assert list(stored(project).parent.iterdir()) == [stored(project)]


def refusal_of(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line of a refusal after progress."""
    assert main(words) == 2
    *_, last = capsys.readouterr().err.splitlines()
    return last.removeprefix("llama-perf: error: ")


def test_a_damaged_baseline_is_reported_before_the_second_process(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(project, "--processes", "1")) == 0
    path = stored(project)
    path.write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert main(command(project, "--processes", "2")) == 2
    error = capsys.readouterr().err
    assert f"llama-perf: error: {path}: Invalid JSON" in error
    assert error.count("[process ") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0"], "processes: 0 is not allowed; allowed: 1 to 1000"),
        (["--fresh", "--row", "*int8*"], "fresh: '*int8*' is not allowed; the"),
        (["--inject-slowdown", "*=50"], "unrecognized arguments: --inject-slowdown"),
        (["--from", "run.json", "--processes", "2"], "processes: 2 is not allowed; an"),
    ],
)
def test_what_makes_no_baseline_is_refused(
    project: Project,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert refusal(capsys, *command(project, *options)).startswith(message)


def test_a_run_that_stopped_early_is_no_baseline(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run("--benchmark-compare", "-x")
    results = project.path / ".llama-perf" / "last.json"
    message = refusal(capsys, *command(project, "--from", str(results)))
    assert "stopped before 2 of its 3 rows; a part of a run is no baseline" in message
    assert not (project.path / "baselines").exists()
