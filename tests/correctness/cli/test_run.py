"""`llama-perf run`: the table, the files it keeps, the comparison, the exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from llama_perf.cli.main import main
from llama_perf.results.run import Report, Status
from llama_perf.results.verdict import Verdict
from llama_perf.strict_json import from_json
from tests.correctness.support.command_line import refusal
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, ROOT, Project
from tests.correctness.support.processes import HANG_S

pytest_plugins = ["pytester"]
# Speeds that no machine has.
UNREACHED, SURPASSED = 1e12, 1e-6


def words(project: Project, *options: str) -> list[str]:
    """The command that runs the tiny rows and keeps them where `project` looks."""
    kept = project.path / ".llama-perf" / "last.json"
    kept.parent.mkdir(exist_ok=True)
    paths = {
        "--rows": project.path / "rows.toml",
        "--checkpoints": project.path / "checkpoints",
        "--baselines": project.path / "baselines",
        "--json": kept,
    }
    listed = [str(word) for pair in paths.items() for word in pair]
    return ["run", *listed, *options]


def verdicts(project: Project) -> dict[str, Verdict]:
    return {each.id: each.verdict for each in project.report().comparisons}


def on_row(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]
) -> None:
    """Call `act` when that row, counted from 1, is to be measured."""
    from llama_perf.run import session

    original, count = session.measure, 0

    def measure(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            act()
        return original(*arguments, **options)

    monkeypatch.setattr(session, "measure", measure)


def test_rows_are_run_and_shown(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project, "--markdown", "table.md")) == 0
    told = capsys.readouterr()
    assert re.search(r"^none +\d+\.\d\d +- .*NOT_COMPARED$", told.out, re.MULTILINE)
    assert f"NOT_RUN {FP6}: scheme fp6 is not built on " in told.out
    assert "weights: pth:tiny\n" in told.out
    assert told.out.endswith("3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)\n\n")
    assert "injected" not in told.out
    progress = "building, warming up, sample 1 of 2, sample 2 of 2, "
    assert re.match(rf"\[1/3\] {re.escape(PLAIN)}: {progress}\d+\.", told.err)
    kept = project.report()
    assert [each.id for each in kept.results] == [PLAIN, INT8, FP6]
    assert kept.results[2].status is Status.NOT_RUN
    table = (project.path / "table.md").read_text(encoding="utf-8")
    assert table.startswith("### llama-perf: 3 rows: 2 run, 1 NOT_RUN")


def test_json_on_stdout_is_its_last_line(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project, "--row", PLAIN, "--json", "-")) == 0
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before == ""
    report = from_json(Report, last, source="stdout")
    assert [each.id for each in report.results] == [PLAIN]
    assert not (project.path / "-").exists()


def test_without_a_baseline_a_comparison_fails_and_says_how_to_record_one(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project, "--compare")) == 1
    told = capsys.readouterr().out
    assert "2 of 3 rows have no baseline for this device (" in told
    assert verdicts(project)[PLAIN] is Verdict.NO_BASELINE

    command = shlex.split(told.split("record one with:\n")[1].splitlines()[0])
    assert main(command[command.index("baseline") :]) == 0
    # Rows of a millisecond are SAME, SLOWER or FASTER, as it happens.
    assert main(words(project, "--compare")) in (0, 1)
    assert Verdict.NO_BASELINE not in verdicts(project).values()


def test_a_row_as_fast_as_its_baseline_passes(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project)) == 0
    path = project.record(tok_s=SURPASSED)
    assert main(words(project, "--compare")) == 0
    assert verdicts(project)[PLAIN] is Verdict.FASTER
    told = capsys.readouterr().out
    assert f"baseline: {path}, recorded " in told
    assert "record one with" not in told


def test_a_slower_row_fails_with_every_number(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project)) == 0
    project.record(tok_s=UNREACHED)
    assert main(words(project, "--compare")) == 1
    current = project.report().results[0].measurement
    assert current is not None
    assert (
        f"SLOWER {PLAIN}: tok/s 1000000000000.00 -> {current.tok_s:.2f} (-100.0%);"
        f" tok/s per GB/s of the device 50000000000.000 -> {current.tok_s / 20:.3f}"
        " (-100.0%, limit 25.0%)" in capsys.readouterr().out
    )


def test_a_damaged_baseline_is_refused_before_a_row_runs(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project)) == 0
    path = project.record()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"tok_s"', '"tok/s"'), encoding="utf-8")
    told = refusal(capsys, *words(project, "--compare"))
    assert told.startswith(f"{path}: rows.0.measurement.tok/s: unknown field")


def test_a_row_that_breaks_keeps_those_before_it_and_the_next_runs(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks() -> None:
        assert [each.id for each in project.report().results] == [PLAIN]
        raise RuntimeError("it broke\nin several lines")

    on_row(monkeypatch, 2, breaks)
    assert main(words(project)) == 1
    assert f"INVALID {INT8}: RuntimeError: it broke\n" in capsys.readouterr().out
    assert [each.status for each in project.report().results] == [
        Status.MEASURED,
        Status.INVALID,
        Status.NOT_RUN,
    ]


def test_a_row_that_upstream_breaks_says_so_and_when_it_works_again(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows_file = project.path / "rows.toml"
    mark = 'quantization = "int8wo"\nupstream_issue = "pytorch/ao#2376"'
    text = rows_file.read_text(encoding="utf-8")
    assert text.count('quantization = "int8wo"') == 1
    rows_file.write_text(
        text.replace('quantization = "int8wo"', mark), encoding="utf-8"
    )
    again = f"works again: {INT8} is marked as broken by pytorch/ao#2376, and ran\n"
    assert main(words(project)) == 0
    shown = capsys.readouterr().out
    assert again in shown
    assert "works again: " not in shown.replace(again, "")

    def breaks() -> None:
        raise RuntimeError("size(0) needs to be greater than 16")

    on_row(monkeypatch, 2, breaks)
    assert main(words(project)) == 0
    shown = capsys.readouterr().out
    reason = "broken upstream, pytorch/ao#2376: RuntimeError: size(0) needs to be"
    assert f"NOT_RUN {INT8}: {reason} greater than 16\n" in shown
    assert again not in shown


def test_an_interrupted_row_keeps_those_before_it(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    on_row(monkeypatch, 2, interrupt)
    assert main(words(project)) == 130
    told = capsys.readouterr()
    assert told.err.endswith("\ninterrupted before 2 of 3 rows; --resume continues\n")
    assert "1 row: 1 run, 0 NOT_RUN" in told.out
    kept = project.report()
    assert [each.id for each in kept.results] == [PLAIN]
    assert kept.selected == 3


def test_ctrl_c_ends_the_process_and_keeps_what_was_measured(project: Project) -> None:
    rows = (project.path / "rows.toml").read_text(encoding="utf-8")
    endless = 'kernels = "torchao"\nnum_samples = 1000000'
    rows = rows.replace('kernels = "torchao"', endless)
    (project.path / "rows.toml").write_text(rows, encoding="utf-8")
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    code = (
        "import signal, sys; from llama_perf.cli.main import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *words(project)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = ""
        while "sample 2 of 1000000" not in told:
            read = process.stderr.read(1)
            assert read, f"it ended by itself: {told}"
            told += read
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, told + err
    assert err.endswith("\ninterrupted before 2 of 3 rows; --resume continues\n")
    assert "1 row: 1 run, 0 NOT_RUN" in out
    assert "Traceback" not in err
    document = json.loads((project.path / ".llama-perf/last.json").read_bytes())
    assert [each["id"] for each in document["results"]] == [PLAIN]


def test_an_injected_slowdown_is_told(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(project, "--inject-slowdown", "*int8wo*=50%")) == 0
    assert f"injected slowdown of 50% in {INT8}\n" in capsys.readouterr().out
    plain, slowed, _ = project.report().results
    assert plain.measurement is not None
    assert slowed.measurement is not None
    assert plain.measurement.injected_slowdown == 0
    assert slowed.measurement.injected_slowdown == 0.5


@pytest.mark.parametrize(
    "value", ["25", "=25", "*=", "*=fast", "*=0", "*=-5", "*=1001", "*=nan"]
)
def test_a_wrong_slowdown_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    told = refusal(capsys, *words(project, f"--inject-slowdown={value}"))
    assert told == (
        f"inject-slowdown: {value!r} is not allowed; write GLOB=PERCENT, percent from"
        " 0 to 1000"
    )


def test_a_slowdown_of_no_row_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--row", PLAIN, "--inject-slowdown", "*int8wo*=50")
    told = refusal(capsys, *words(project, *options))
    assert told == "inject-slowdown: '*int8wo*' is not allowed; no selected row matches"
