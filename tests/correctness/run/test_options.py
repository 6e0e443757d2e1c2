"""Every option that pytest and the command line share is one definition."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llama_perf.cli.main import COMMANDS
from llama_perf.errors import SpecError
from llama_perf.pytest_plugin.options import add_options
from llama_perf.run.options import OPTIONS, add_arguments, request_of
from llama_perf.run.request import RunOptions, Slowdown
from tests.correctness.support.plugin_project import Project

pytest_plugins = ["pytester"]
Described = dict[str, tuple[str | None, object, Iterable[object] | None]]


def of_command_line(command: str) -> Described:
    """Each option that `llama-perf COMMAND --help` lists: help, default, choices."""
    parser = argparse.ArgumentParser(add_help=False)
    COMMANDS[command].add_arguments(parser)
    return {
        action.option_strings[0]: (action.help, action.default, action.choices)
        for action in parser._actions
        if action.help != argparse.SUPPRESS
    }


def of_pytest() -> Described:
    options: Described = {}

    class Group:
        def addoption(self, name: str, **keywords: Any) -> None:
            options[name] = (
                keywords["help"],
                keywords["default"],
                keywords.get("choices"),
            )

    class Parser:
        def getgroup(self, *_names: str) -> Group:
            return Group()

    add_options(Parser())  # type: ignore[arg-type]  # only what is called
    return options


def test_pytest_and_the_command_line_have_the_same_options() -> None:
    assert of_command_line("run") == of_pytest()
    assert list(of_pytest()) == list(OPTIONS)


def test_the_other_commands_take_options_from_the_same_table() -> None:
    taken = of_command_line("compare")
    shared = {name: taken[name] for name in taken if name in OPTIONS}
    assert len(shared) > 10
    assert shared == {name: of_pytest()[name] for name in shared}


def test_pytest_lists_them(project: Project) -> None:
    result = project.pytester.runpytest_inprocess("--help")
    for name in OPTIONS:
        result.stdout.fnmatch_lines([f"  {name}*"])


@pytest.mark.parametrize(
    ("former", "now"),
    [
        (("--json", "x.json"), ("--results", "x.json")),
        (("--json", "-"), ("--results", "-")),
        (("--benchmark-compare",), ("--compare",)),
    ],
)
def test_former_names_still_work(former: tuple[str, ...], now: tuple[str, ...]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    asked = request_of(parser.parse_args(former))
    assert asked == request_of(parser.parse_args(now))
    assert asked != request_of(parser.parse_args([]))


def test_compare_means_the_baseline_in_pytest_too(project: Project) -> None:
    project.run()
    project.record(tok_s=1e-6)
    result = project.run("--compare")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["3 rows: 2 run, 1 NOT_RUN (2 FASTER)"])


def test_reports_have_the_format_of_their_suffix(project: Project) -> None:
    project.run("--report=a.md", "--report=b.csv", "--markdown=summary")
    markdown = (project.path / "a.md").read_text(encoding="utf-8")
    assert markdown.startswith("### llama-perf: 3 rows")
    assert (project.path / "summary").read_text(encoding="utf-8") == markdown
    assert len((project.path / "b.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_a_shard_is_a_part_in_pytest_too(project: Project) -> None:
    project.run("--shard=2/3").assert_outcomes(passed=1)
    project.run("--shard=3/3").assert_outcomes(skipped=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolate": "none"}, "isolate: 'none' is not allowed; allowed: session, row"),
        ({"row_timeout_s": 0.0}, "row-timeout: 0.0 is not allowed; allowed: a number"),
        ({"time_budget_s": float("inf")}, "time-budget: inf is not allowed; allowed"),
        ({"checkpoints": Path("none")}, "checkpoints: 'none' is not allowed; no such"),
    ],
)
def test_values_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        RunOptions(**options)
    assert str(caught.value).startswith(message)


def test_a_slowdown_is_a_share_of_the_rows_that_match() -> None:
    slowdowns = tuple(map(Slowdown.parse, ("*int8*=25%", "a*=50")))
    options = RunOptions(slowdowns=slowdowns)
    assert [options.slowdown(name) for name in ("a-int8", "int8", "b")] == [
        0.75,
        0.25,
        0,
    ]


@pytest.mark.parametrize(
    "text", ["25", "=25", "*=", "*=fast", "*=0", "*=-5", "*=1001", "*=nan"]
)
def test_a_wrong_slowdown_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Slowdown.parse(text)
    assert str(caught.value) == (
        f"inject-slowdown: {text!r} is not allowed; write GLOB=PERCENT, percent from"
        " 0 to 1000"
    )
