"""`--report FILE`: every command that measures has it, and checks it before it does."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from llama_perf import report as reports
from llama_perf.cli import bisect
from llama_perf.report.columns import Layout
from llama_perf.results.run import Report, Verdict, read_report
from llama_perf.rows.spec import RowSpec
from llama_perf.run import paired
from llama_perf.run.bisection import Mark, Marked
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.command_line import TINY, CommandLine
from tests.correctness.support.made_up_workers import BASE, Machine, MadeUpWorker
from tests.correctness.support.plugin_project import Project
from tests.correctness.support.record_samples import (
    baseline_of,
    compare,
    measured,
    report_of,
    stored_in,
)

pytest_plugins = ["pytester"]

COMMANDS = {
    "run": ["run", "--set", "cpu"],
    "compare": ["compare", "--base", "HEAD", "--set", "cpu"],
    "bisect": ["bisect", "--good", "HEAD~1", "--bad", "HEAD", "--set", "cpu"],
    "record": ["baseline", "record", "--from", "run.json"],
    "report": ["report", "run.json"],
    "generate": [*TINY],
}
ENDS = ", ".join(reports.suffixes())
# The reports of a command, and the end of what it says of the last one.
WRONG = {
    "run.poem": f"allowed: a file that ends in {ENDS}",
    "run": f"allowed: a file that ends in {ENDS}",
    ".md": f"allowed: a file that ends in {ENDS}",
    "none/run.md": "its folder does not exist",
    "folder.md": "it is a folder; give a file",
    "/proc/run.md": "/proc cannot be written: No such file or directory",
    "null.md": "it is no regular file",
    f"{'n' * 300}.md": "it cannot be reached: File name too long",
    "a.md a.md": "it is named twice; allowed: a file of its own",
    "a.md ./folder.md/../a.md": "it is named twice; allowed: a file of its own",
    "lacks.csv": "csv needs no_such_module, which is not installed: pip install"
    " 'llama-perf[csv]'",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where nothing may be measured and CSV lacks a library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(to_json(report_of(measured())), encoding="utf-8")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "null.md").symlink_to(os.devnull)
    (tmp_path / "link.json").symlink_to("run.json")
    lacking = [
        replace(one, needs=("no_such_module",)) if one.name == "csv" else one
        for one in reports._FORMATS[Report]
    ]
    monkeypatch.setitem(reports._FORMATS, Report, lacking)

    def started(*_: object, **__: object) -> None:
        pytest.fail("it started before it refused")

    for name in (
        "measure.prepare.build_model",
        "run.session.measure_ceiling",
        "run.worker.worker_command",
        "results.run.read_report",
    ):
        monkeypatch.setattr(f"llama_perf.{name}", started)
    return tmp_path


def options(words: str) -> list[str]:
    return [word for path in words.split() for word in ("--report", path)]


def refused(path: str, problem: str) -> str:
    return f"report: {str(Path(path))!r} is not allowed; {problem}"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_path_is_refused_by_every_command(
    cli: CommandLine, command: str
) -> None:
    for paths, problem in WRONG.items():
        message = cli.refusal(*COMMANDS[command], *options(paths))
        assert message == refused(paths.split()[-1], problem)


RECORD = "baseline record --baselines stored --from run.json"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("run --set cpu --results a.json --report a.json", "the file of --results"),
        ("compare --base HEAD --results a.md --report a.md", "the file of --results"),
        ("run --set cpu --results a --markdown a", "the file of --results"),
        ("run --set cpu --markdown a.md --report a.md", "the file of --markdown"),
        ("run --rows own.json --report own.json", "the file of --rows"),
        ("bisect --good 1 --bad 2 --rows a.md --report a.md", "the file of --rows"),
        ("report run.json --report run.json", "a file that is read"),
        ("report a.json run.json --report link.json", "a file that is read"),
        (f"{RECORD} --report run.json", "a file that is read"),
        (f"{RECORD} --report stored/cpu-some-2c/baseline.json", "a baseline"),
        (f"{' '.join(TINY)} --report a.json --profile a.json", "the file of --report"),
    ],
)
def test_a_report_takes_no_other_files_place(
    folder: Path, cli: CommandLine, words: str, problem: str
) -> None:
    stored = stored_in(folder / "stored", baseline_of(measured()))
    message = cli.refusal(*words.split())
    assert f" is not allowed; it is also {problem}; allowed: a file of " in message
    assert stored.read_text(encoding="utf-8") == to_json(baseline_of(measured()))


def test_pytest_refuses_the_same(project: Project) -> None:
    lacking = replace(reports.format_named("csv"), needs=("no_such_module",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reports._FORMATS, Report, [lacking])
        text = project.refusal("--report", "lacks.csv")
    assert f"{project.path}/lacks.csv' is not allowed; {WRONG['lacks.csv']}" in text
    (project.path / "saved.json").touch()
    project.results.parent.mkdir()
    for words, problem in (
        ("--report=.llama-perf/last.json", "the file of --results"),
        ("--benchmark-compare=saved.json --report=saved.json", "a file that is read"),
        ("--benchmark-json=b.json --report=b.json", "a file of llama-perf's"),
    ):
        text = project.refusal(*words.split())
        assert f"is not allowed; it is also {problem}; allowed: a file of its " in text


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A run compared, in the working directory's file."""
    monkeypatch.chdir(tmp_path)
    slow = measured(tok_s=60.0)
    comparison = compare(slow, baseline_of(measured()))
    report = report_of(slow, comparisons=(comparison,))
    Path("run.json").write_text(to_json(report), encoding="utf-8")
    return read_report(Path("run.json"))


ALL = ("out.txt", "out.md", "out.csv", "out.jsonl", "out.json")


def test_stored_runs_are_written_as_they_are_printed(
    cli: CommandLine, stored: Report
) -> None:
    out, _ = cli("report", "run.json", *options(" ".join(ALL)), "--columns", "change")
    layout = Layout(("change",))
    assert out == reports.draw(stored, "text", layout)
    for name in ALL:
        form = reports.format_of(Path(name))
        expected = reports.draw(stored, form.name, layout)
        assert Path(name).read_text(encoding="utf-8") == expected
    # With a format it prints that one.
    out, _ = cli("report", "run.json", "--format", "csv", "--report", "again.md")
    assert out == reports.draw(stored, "csv")
    assert Path("again.md").read_text("utf-8") == reports.draw(stored, "markdown")


@pytest.mark.usefixtures("stored")
def test_a_file_that_cannot_be_written_at_the_end_costs_only_itself(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise TypeError("no such\nchart")

    form = replace(reports.format_named("csv"), draw=broken)
    known = [form if one.name == "csv" else one for one in reports._FORMATS[Report]]
    monkeypatch.setitem(reports._FORMATS, Report, known)
    out, error = cli("report", "run.json", *options("a.csv a.md"), code=2)
    assert "SLOWER" in out
    assert error == (
        "llama-perf: error: a.csv: cannot be drawn: TypeError: no such\\nchart\n"
    )
    assert "SLOWER" in Path("a.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("stored")
def test_what_was_recorded_is_written_as_it_is_printed(cli: CommandLine) -> None:
    words = ["baseline", "record", "--baselines", "stored", "--from", "run.json"]
    out, _ = cli(*words, *options("out.txt out.json"))
    assert out.startswith(Path("out.txt").read_text(encoding="utf-8"))
    (result,) = read_report(Path("out.json")).results
    assert result == measured(tok_s=60.0)


def test_a_generation_is_a_report_of_one_row(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = cli(*TINY, "--prefill_size", "4", *options("out.json out.md"))
    report = read_report(Path("out.json"))
    (result,) = report.results
    row = RowSpec(model="stories15M", dtype="float32", device="cpu", prompt_length=4)
    assert result.row == replace(row, max_new_tokens=3, num_samples=1)
    assert result.measurement is not None
    assert f"Average tokens/sec: {result.measurement.tok_s:.2f}\n" in out
    assert report.environment.device_key.startswith("cpu-")
    assert f"- note: {report.note}" in Path("out.md").read_text(encoding="utf-8")
    talk = ("--interactive", "--num_samples", "5")
    message = cli.refusal(*TINY, *talk, *options("out.md"))
    assert message == "report: not with --interactive, which measures nothing"


@pytest.mark.parametrize("skipped", [[], ["5" * 40]])
def test_a_bisection_ends_with_the_bad_commit_beside_the_good_one(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    skipped: list[str],
) -> None:
    """The pairs that decided are stored with the commit, and so is the report."""
    machine, good, bad = Machine(), "1" * 40, "9" * 40
    machine.changes = {}
    machine.ns = lambda side, _: 10**8 * (2 if side == "head" else 1)

    def bisected(*_: str, decide: Callable[[str], Marked], **__: object) -> object:
        marked = {bad: decide(bad)}
        stored = from_json(Marked, to_json(marked[bad]), source="state")
        skip = replace(stored, mark=Mark.SKIP, reason="it does not run")
        return [*skipped, bad], {bad: stored} | dict.fromkeys(skipped, skip)

    folders = {good: BASE, bad: tmp_path}
    for name, stand_in in (
        ("resolve", lambda revision, **_: revision),
        ("run_git", Mock(return_value=Mock(returncode=1))),
        ("checked_out", lambda commit: nullcontext(folders[commit])),
        ("bisect", bisected),
    ):
        monkeypatch.setattr(bisect, name, stand_in)
    monkeypatch.setattr(paired, "Worker", lambda **how: MadeUpWorker(machine, **how))
    monkeypatch.setattr(paired, "main_threads_on_one_core", lambda _: nullcontext())
    path = tmp_path / "found.json"
    words = ["--set", "cpu", "--row", "*fp6*", "--report", str(path)]
    out, _ = cli("bisect", "--good", good, "--bad", bad, *words, code=len(skipped))
    report = read_report(path)
    (comparison,) = report.comparisons
    assert comparison.verdict is Verdict.SLOWER
    assert comparison.pairs == 4
    assert comparison.before is not None
    assert len(comparison.processes or ()) == 1
    assert report.baseline_source == f"{good}, commit {good[:12]}"
    assert " bisect --good 1" in " ".join(report.again)
    if skipped:
        assert f"some were skipped: {skipped[0]} (skip): it does" in str(report.note)
        assert out.startswith("the first bad commit is one of these, of which some ")
    else:
        assert report.note == f"{bad} is the first bad commit"
        assert out.startswith(f"{report.note}\n")
