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


def on_row(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]
) -> None:
    """Call `act` when that row, counted from 1, is to be measured."""
    from llama_perf.measure import timing
    from llama_perf.run import session

    original, count = timing.measure, 0

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
    assert main(project.run_words("--markdown", "table.md")) == 0
    output = capsys.readouterr()
    assert re.search(r"^none +\d+\.\d\d +- .*NOT_COMPARED$", output.out, re.MULTILINE)
    assert f"NOT_RUN {FP6}: scheme fp6 is not built on " in output.out
    assert "weights: pth:tiny\n" in output.out
    assert output.out.endswith("3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)\n\n")
    assert "injected" not in output.out
    progress = "building, warming up, sample 1 of 2, sample 2 of 2, "
    assert re.match(rf"\[1/3\] {re.escape(PLAIN)}: {progress}\d+\.", output.err)
    report = project.report()
    assert [result.id for result in report.results] == [PLAIN, INT8, FP6]
    assert report.results[2].status is Status.NOT_RUN
    table = (project.path / "table.md").read_text(encoding="utf-8")
    assert table.startswith("### llama-perf: 3 rows: 2 run, 1 NOT_RUN")


def test_json_on_stdout_is_its_last_line(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(project.run_words("--row", PLAIN, "--results", "-")) == 0
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before == ""
    report = from_json(Report, last, source="stdout")
    assert [result.id for result in report.results] == [PLAIN]
    assert not (project.path / "-").exists()


def test_without_a_baseline_a_comparison_fails_and_says_how_to_record_one(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(project.run_words("--compare")) == 1
    output = capsys.readouterr().out
    assert "2 of 3 rows have no baseline for this device (" in output
    assert project.verdicts()[PLAIN] is Verdict.NO_BASELINE

    command = shlex.split(output.split("record one with:\n")[1].splitlines()[0])
    assert main(command[command.index("baseline") :]) == 0
    # Rows of a millisecond are SAME, SLOWER or FASTER, as it happens.
    assert main(project.run_words("--compare")) in (0, 1)
    assert Verdict.NO_BASELINE not in project.verdicts().values()


def test_a_damaged_baseline_is_refused_before_a_row_runs(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(project.run_words()) == 0
    path = project.record()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"tok_s"', '"tok/s"'), encoding="utf-8")
    message = refusal(capsys, *project.run_words("--compare"))
    assert message.startswith(f"{path}: rows.0.measurement.tok/s: unknown field")


def test_a_row_that_breaks_keeps_those_before_it_and_the_next_runs(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks() -> None:
        assert [result.id for result in project.report().results] == [PLAIN]
        raise RuntimeError("it broke\nin several lines")

    on_row(monkeypatch, 2, breaks)
    assert main(project.run_words()) == 1
    assert f"INVALID {INT8}: RuntimeError: it broke\n" in capsys.readouterr().out
    assert [result.status for result in project.report().results] == [
        Status.MEASURED,
        Status.INVALID,
        Status.NOT_RUN,
    ]


def test_a_row_that_upstream_breaks_says_so_and_when_it_works_again(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scheme = 'quantization = "int8wo"'
    project.edit_rows(scheme, f'{scheme}\nupstream_issue = "pytorch/ao#2376"')
    works_again = (
        f"works again: {INT8} is marked as broken by pytorch/ao#2376, and ran\n"
    )
    assert main(project.run_words()) == 0
    shown = capsys.readouterr().out
    assert works_again in shown
    assert "works again: " not in shown.replace(works_again, "")

    def breaks() -> None:
        raise RuntimeError("size(0) needs to be greater than 16")

    on_row(monkeypatch, 2, breaks)
    assert main(project.run_words()) == 0
    shown = capsys.readouterr().out
    reason = "broken upstream, pytorch/ao#2376: RuntimeError: size(0) needs to be"
    assert f"NOT_RUN {INT8}: {reason} greater than 16\n" in shown
    assert works_again not in shown


def test_an_interrupted_row_keeps_those_before_it(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    on_row(monkeypatch, 2, interrupt)
    assert main(project.run_words()) == 130
    output = capsys.readouterr()
    assert output.err.endswith("\ninterrupted before 2 of 3 rows; --resume continues\n")
    assert "1 row: 1 run, 0 NOT_RUN" in output.out
    report = project.report()
    assert [result.id for result in report.results] == [PLAIN]
    assert report.selected == 3


def test_ctrl_c_ends_the_process_and_keeps_what_was_measured(project: Project) -> None:
    kernels = 'kernels = "torchao"'
    project.edit_rows(kernels, f"{kernels}\nnum_samples = 1000000")
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    code = (
        "import signal, sys; from llama_perf.cli.main import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *project.run_words()],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        output = ""
        while "sample 2 of 1000000" not in output:
            read = process.stderr.read(1)
            assert read, f"it ended by itself: {output}"
            output += read
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, output + err
    assert err.endswith("\ninterrupted before 2 of 3 rows; --resume continues\n")
    assert "1 row: 1 run, 0 NOT_RUN" in out
    assert "Traceback" not in err
    document = json.loads((project.path / ".llama-perf/last.json").read_bytes())
    assert [result["id"] for result in document["results"]] == [PLAIN]


def test_an_injected_slowdown_is_reported(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(project.run_words("--inject-slowdown", "*int8wo*=50%")) == 0
    assert f"injected slowdown of 50% in {INT8}\n" in capsys.readouterr().out
    normal, slowed, _ = project.report().results
    assert normal.measurement is not None
    assert slowed.measurement is not None
    assert normal.measurement.injected_slowdown == 0
    assert slowed.measurement.injected_slowdown == 0.5


def test_a_slowdown_of_no_row_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--row", PLAIN, "--inject-slowdown", "*int8wo*=50")
    message = refusal(capsys, *project.run_words(*options))
    assert (
        message == "inject-slowdown: '*int8wo*' is not allowed; no selected row matches"
    )
