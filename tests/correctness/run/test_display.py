"""What a command shows while it works: on a terminal, and elsewhere."""

import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from llama_perf.results.run import Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import display as displaying
from llama_perf.run.display import Display, clock, live_line
from llama_perf.run.time_left import Task
from llama_perf.run.worker_protocol import WorkerResult
from tests.correctness.support.plugin_project import FP6, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    OTHER,
    measured,
    unmeasured,
)
from tests.correctness.support.terminals import (
    HIDE_CURSOR,
    SHOW_CURSOR,
    console,
    pseudo_terminal,
    screen,
    written,
)

pytest_plugins = ["pytester"]
LABEL, STEP = "[ 3/19] int8wo.compile", "sample 2 of 5"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        time = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr(displaying, "time", time)


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def tasks(*kinds: str) -> list[Task]:
    return [Task(id=f"row-{kind}", name=f"row-{kind}", kind=kind) for kind in kinds]


def test_a_duration_is_short() -> None:
    shown = [clock(seconds) for seconds in (0, 9.6, 61, 3599, 3600, 7384)]
    assert shown == ["0:00", "0:10", "1:01", "59:59", "1:00:00", "2:03:04"]


@pytest.mark.parametrize(
    ("width", "left_s", "line"),
    [
        (80, 80.0, f"{LABEL}  {STEP}  0:41 elapsed, about 1:20 left"),
        (80, None, f"{LABEL}  {STEP}  0:41 elapsed"),
        (63, 80.0, f"[ 3/19] ...ompile  {STEP}  0:41 elapsed, about 1:20 left"),
        (60, 80.0, f"{LABEL}  {STEP}  0:41, 1:20 left"),
        (49, 80.0, f"[ 3/19] ...ompile  {STEP}  0:41, 1:20 left"),
        (40, 80.0, f"{LABEL}  0:41, 1:20 left"),
        (30, 80.0, "[ 3/19] int8wo.compile"),
        (10, 80.0, "[ 3/19] in"),
        (2, 80.0, "[ "),
    ],
)
def test_the_live_line_fits_its_terminal(
    width: int, left_s: float | None, line: str
) -> None:
    assert live_line(LABEL, STEP, 41.0, left_s, width) == line
    assert len(line) <= width


def run(display: Display, passing: Clock) -> None:
    """Three tasks of two kinds, of 10, 20 and 10 seconds."""
    display.plan(tasks("eager", "compiled", "eager"))
    for seconds in (10, 20, 10):
        with display.next() as running:
            running.step("building")
            running.step("note: a cache is longer than [bold] the model")
            passing.now_s += seconds / 2
            running.step("sample 1 of 2")
            passing.now_s += seconds / 2
            running.end("26.53 tok/s  +1.2%", "SAME", "green")


ROWS = ("row-eager   ", "row-compiled", "row-eager   ")
STAYS = [
    line
    for number, (row, seconds) in enumerate(zip(ROWS, (10, 20, 10), strict=True), 1)
    for line in (
        f"[{number}/3] {row.strip()}: a cache is longer than [bold] the model",
        f"[{number}/3] {row}  26.53 tok/s  +1.2%  SAME  {seconds}.0 s",
    )
]


def test_a_live_line_gives_way_to_lines_that_stay(passing: Clock) -> None:
    terminal = console()
    run(Display(terminal), passing)
    text = written(terminal)
    assert screen(text) == [*STAYS, ""]
    assert "\x1b[32mSAME\x1b[0m" in text
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 3
    shown = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", part) for part in text.split("\r")]
    # No estimate before the time of each kind is known.
    assert "[1/3] row-eager  sample 1 of 2  0:05 elapsed" in shown
    assert "[2/3] row-compiled  sample 1 of 2  0:20 elapsed" in shown
    assert "[3/3] row-eager  building  0:30 elapsed, about 0:10 left" in shown
    assert "[3/3] row-eager  sample 1 of 2  0:35 elapsed, about 0:05 left" in shown


@pytest.mark.parametrize("width", [40, 20])
def test_a_narrow_terminal_keeps_whole_lines(passing: Clock, width: int) -> None:
    terminal = console(width=width)
    run(Display(terminal), passing)
    shown = screen(written(terminal), width)
    # In whole words, without blanks that align the figures.
    assert " ".join(shown).split() == " ".join(STAYS).split()
    assert "  26.53 tok/s  +1.2%" in "".join(shown) or width == 20


def test_a_file_gets_two_plain_lines_a_task(passing: Clock) -> None:
    log = console(is_terminal=False, width=20)
    run(Display(log), passing)
    begun = [
        "[1/3] row-eager  started  0:00 elapsed",
        "[2/3] row-compiled  started  0:10 elapsed",
        "[3/3] row-eager  started  0:30 elapsed, about 0:10 left",
    ]
    ended = zip(begun, STAYS[::2], STAYS[1::2], strict=True)
    assert written(log).splitlines() == [line for lines in ended for line in lines]


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_no_variable_puts_control_codes_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "1")
    display = Display.on(sys.stderr)
    display.plan(tasks("eager"))
    with display.next() as running:
        running.step("building")
        running.end("", "SAME", "green")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "[1/1] row-eager  started  0:00 elapsed"
    assert err.splitlines()[1].startswith("[1/1] row-eager  SAME  0.")
    assert not {"\r", "\x1b"} & {*err}


@pytest.mark.parametrize(
    ("name", "value", "is_live", "is_coloured"),
    [
        ("TERM", "xterm", True, True),
        ("NO_COLOR", "1", True, False),
        ("TERM", "dumb", False, False),
    ],
)
def test_a_terminal_is_taken_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    is_live: bool,
    is_coloured: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    with pseudo_terminal() as (stream, arrived):
        monkeypatch.setattr(sys, "stderr", stream)
        display = Display.on(sys.stderr)
        display.plan(tasks("eager"))
        with display.next() as running:
            running.end("", "SAME", "green")
        monkeypatch.undo()
    (text,) = arrived
    assert (HIDE_CURSOR in text) == is_live
    assert ("\x1b[32m" in text) == is_coloured
    assert is_live or not {"\x1b"} & {*text}


def test_what_a_confirmation_takes_is_expected_and_not_counted(passing: Clock) -> None:
    display = Display(Console(quiet=True))
    display.plan(tasks("eager", "eager"))
    with display.next() as running:
        passing.now_s += 10
        running.repeat(5)
        passing.now_s += 20
        running.step("fresh process 3 of 5")
        # 30 more of it, 10 of the other row.
        assert display.line(running, 80).endswith("0:30 elapsed, about 0:40 left")
        passing.now_s += 100
        running.end("")
    with display.next() as running:
        assert display.line(running, 80).endswith("2:10 elapsed, about 0:10 left")
        running.end("", counted=False)
    assert [seconds for _, seconds in display.ended] == [10.0]


def test_a_row_that_cannot_run_leaves_the_plan() -> None:
    log = console(is_terminal=False)
    display = Display(log)
    display.plan_rows(
        [(row, f"process {n} of 2") for n in (1, 2) for row in (CPU_ROW, OTHER)]
    )
    for dropped in (False, True, False):
        with display.next() as running:
            running.end("")
        if dropped:
            display.drop(OTHER.id)
    begun = [line for line in written(log).splitlines() if "started" in line]
    assert [line.partition("  ")[0] for line in begun] == [
        "[1/4] eager, process 1 of 2",
        "[2/4] compile, process 1 of 2",
        "[3/3] eager, process 2 of 2",
    ]


@pytest.mark.parametrize("columns", [120, 40])
def test_a_command_on_a_terminal(project: Project, columns: int) -> None:
    project.patch.setenv("TERM", "xterm")
    project.patch.setenv("COLUMNS", str(columns))
    with pseudo_terminal() as (stream, arrived), project.patch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        out, _ = project.cli(*project.run_words("--results", "-"))
    (text,) = arrived
    assert out.splitlines()[-1].startswith('{"kind": "llama-perf report"')
    lines = screen(text, columns)
    assert " ".join(lines).startswith("every row: tiny.fp32.cpu.eager.new-4.samples-2")
    assert "[1/3] none" in " ".join(lines)
    assert re.search(
        r"\[3/3\] fp6.torchao +NOT_RUN: scheme fp6 is not", " ".join(lines)
    )
    assert lines[-1] == ""
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    if columns == 120:
        assert len(lines) == 5
        steps = ("started", "building", "warming up", "sample 1 of 2", "sample 2 of 2")
        seen = [text.index(f"[1/3] none  {step}  0:0") for step in steps]
        assert seen == sorted(seen)


def test_an_interrupt_leaves_a_clean_terminal(project: Project) -> None:
    def process(number: int, row: RowSpec) -> WorkerResult:
        if (number, row.id) == (2, PLAIN):
            raise KeyboardInterrupt
        result = measured(row)
        if row.id == FP6:
            result = unmeasured(Status.NOT_RUN, "not built", row)
        return WorkerResult(result=result, environment=ENVIRONMENT)

    project.stand_in(process)
    project.patch.setenv("TERM", "xterm")
    with pseudo_terminal() as (stream, arrived), project.patch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        project.cli(*project.words("baseline", "record"), code=130)
    (text,) = arrived
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    *_, third, last, empty = screen(text)
    assert third.startswith("[ 3/15] fp6.torchao, process 1 of 5")
    assert (last, empty) == ("llama-perf: interrupted; nothing was recorded", "")
