"""The live line of a row inside pytest's own output, on a terminal."""

import re
import sys

import pytest

from tests.correctness.support.plugin_project import Project
from tests.correctness.support.terminals import (
    HIDE_CURSOR,
    SHOW_CURSOR,
    pseudo_terminal,
    screen,
)

pytest_plugins = ["pytester"]
STEPS = ("started", "building", "warming up", "sample 1 of 2", "sample 2 of 2")
ROW = re.compile(r"\[([1-3])/3\] (none|int8wo|fp6)\b.* \d+\.\d s")


@pytest.mark.parametrize("options", ["", "-q", "-v", "-s", "--capture=sys"])
def test_rows_stay_and_the_live_line_goes(project: Project, options: str) -> None:
    project.patch.setenv("TERM", "xterm")
    project.patch.delenv("NO_COLOR", raising=False)
    project.patch.setenv("COLUMNS", "200")
    words = ["-p", "no:hypothesispytest", *project.tiny_rows, *options.split()]
    with pseudo_terminal() as (stream, arrived), project.patch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        project.pytester.inline_run("tests/perf", *words)
    (text,) = arrived
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 3
    seen = [text.index(f"[1/3] none  {step}  0:0") for step in STEPS]
    assert seen == sorted(seen)
    lines = screen(text, 200)
    # Each on a line of its own, whatever pytest writes before and after it.
    rows = [found for line in lines if (found := ROW.fullmatch(line))]
    assert [found[2] for found in rows] == ["none", "int8wo", "fp6"]
    # Quiet, pytest names no file.
    named = any(line.startswith("tests/perf/test_rows.py") for line in lines)
    assert named == (options != "-q")
    assert not any("sample" in line for line in lines if "samples-2" not in line)
    assert re.search(r"2 passed.*, 1 skipped", lines[-2])


def test_without_pytests_terminal_nothing_is_written(project: Project) -> None:
    with pseudo_terminal() as (stream, arrived), project.patch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        words = ["-p", "no:hypothesispytest", "-p", "no:terminal", *project.tiny_rows]
        project.pytester.inline_run("tests/perf", *words)
    assert arrived == [""]
    assert len(project.report().results) == 3
