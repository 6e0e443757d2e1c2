"""How `make test` shares the files of tests between its processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from schedule import CARD, FIRST, TOGETHER, place

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent
CONFTEST = """
import sys
sys.path.insert(0, {here!r})
import schedule

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: schedule.place(item.path.stem))

def pytest_xdist_make_scheduler(config, log):
    return schedule.scheduling(config, log)
"""
WHERE = """
import os
def test_where():
    open({path!r} + os.environ["PYTEST_XDIST_WORKER"], "a").close()
"""


def test_every_file_that_is_named_is_there() -> None:
    named = {*FIRST, *CARD, *(file for files in TOGETHER for file in files)}
    assert {file for file in named if not (HERE / f"{file}.py").exists()} == set()


def test_files_that_share_start_together() -> None:
    for files in TOGETHER:
        assert len({place(file) for file in files}) == 1
    assert [place(file) for file in FIRST] == list(range(len(FIRST)))
    assert place("test_document") == len(FIRST)


def test_files_that_share_run_in_one_process(pytester: pytest.Pytester) -> None:
    names = [*TOGETHER[0], "test_apart"]
    for name in names:
        path = f"{pytester.path}/{name}-"
        (pytester.path / f"{name}.py").write_text(WHERE.format(path=path))
    (pytester.path / "conftest.py").write_text(CONFTEST.format(here=str(HERE)))
    options = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    result = pytester.runpytest_subprocess(*options, "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=len(names))
    workers = {
        name: [
            path.name.removeprefix(f"{name}-")
            for path in pytester.path.glob(f"{name}-*")
        ]
        for name in names
    }
    together = {tuple(workers[name]) for name in TOGETHER[0]}
    assert len(together) == 1
    assert tuple(workers["test_apart"]) not in together
