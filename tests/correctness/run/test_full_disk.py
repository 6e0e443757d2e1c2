"""A disk that gets full, or a file that cannot be written, loses no measurement."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_perf.measure.timing import measure_row
from llama_perf.run import session
from llama_perf.run.results_file import ResultsFile
from llama_perf.strict_json import read_json
from tests.correctness.support.disks import Disk
from tests.correctness.support.plugin_project import Project
from tests.correctness.support.record_samples import report_of

pytest_plugins = ["pytester"]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", monkeypatch)
    yield disk
    disk.unmount()


def before_last_row(project: Project, happens: Callable[[], None]) -> None:
    """Have something happen before the last row that runs is measured."""
    rows: list[None] = []

    def measured(*arguments: Any, **options: Any) -> Any:
        rows.append(None)
        if len(rows) == 2:
            happens()
        return measure_row(*arguments, **options)

    project.patch.setattr(session, "measure_row", measured)


def test_the_last_results_of_a_full_disk_are_named(disk: Disk) -> None:
    path = disk.folder / "results.json"
    file = ResultsFile(path)
    file.write(report_of(selected=1))
    assert file.problem is None
    disk.fill()
    file.write(report_of(selected=2))
    assert file.problem == f"{path}: cannot be written: No space left on device"
    # What was written before is still there, and no half of a file.
    assert disk.is_real or [*disk.folder.iterdir()] == [path]


def test_a_disk_that_gets_full_during_a_run(project: Project, disk: Disk) -> None:
    results, table = disk.folder / "results.json", disk.folder / "table.md"
    before_last_row(project, disk.fill)
    words = project.words("run", "--results", str(results), "--report", str(table))
    out, err = project.cli(*words, code=2)
    assert "3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)" in out
    problem = "cannot be written: No space left on device"
    assert err.splitlines()[-2:] == [
        f"llama-perf: error: {results}: {problem}",
        f"llama-perf: error: {table}: {problem}",
    ]
    assert len(read_json(type(report_of()), results).results) == 1


def test_a_disk_that_gets_full_under_pytest(project: Project, disk: Disk) -> None:
    results, table = disk.folder / "results.json", disk.folder / "table.md"
    before_last_row(project, disk.fill)
    result = project.run(f"--results={results}", f"--report={table}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes(passed=2, skipped=1)
    problem = "cannot be written: No space left on device"
    result.stdout.fnmatch_lines(
        [
            "3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)",
            f"ERROR: {results}: {problem}",
            f"ERROR: {table}: {problem}",
        ]
    )


def test_results_that_nobody_named_stop_no_run(project: Project) -> None:
    project.results.parent.write_text("a file in its place", encoding="utf-8")
    result = project.run("--report=table.md", passed=2, skipped=1)
    note = f"note: the results are not kept: {project.results}: cannot be written: *"
    result.stdout.fnmatch_lines(["3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)", note])
    assert (project.path / "table.md").exists()


def test_without_a_terminal_a_report_is_written(project: Project) -> None:
    result = project.run("-p", "no:terminal", "--report=table.md", "--row=*none*")
    assert result.ret == pytest.ExitCode.OK
    assert (project.path / "table.md").exists()
