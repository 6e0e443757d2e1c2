"""Every option that pytest and the command line share is one definition."""

import argparse
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from llama_perf.cli.main import COMMANDS
from llama_perf.pytest_plugin.options import pytest_addoption
from llama_perf.run import options, read_options
from tests.correctness.support.errors import refusal
from tests.correctness.support.plugin_project import Project

pytest_plugins = ["pytester"]


def listed(added: Mock) -> dict[str, list[object]]:
    """Help, default and choices of each option that was added and is not hidden."""
    return {
        option.args[0]: list(map(option.kwargs.get, ("help", "default", "choices")))
        for option in added.call_args_list
        if option.kwargs["help"] != argparse.SUPPRESS
    }


def test_the_command_that_runs_a_row_again_judges_it_alike() -> None:
    words = ["--set", "cpu", "--base", "main", "--inject-slowdown", "*int8*=5"]
    words += ["--inject-slowdown", "*=0.5"]
    parser = argparse.ArgumentParser()
    COMMANDS["run"].add_arguments(parser)
    request = read_options.request_of(parser.parse_args(words))
    command = request.command("run", "--compare")
    assert command[command.index("run") :] == ["run", "--compare", *words]


def test_a_command_names_the_program_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
        script = tmp_path / folder / "llama-perf"
        script.touch(0o755)
    python = tmp_path / "own" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    module = [str(python), "-m", "llama_perf"]
    for path, words in (("own", ["llama-perf"]), ("other", module), ("none", module)):
        monkeypatch.setenv("PATH", str(tmp_path / path))
        assert options.program("llama-perf") == words


def test_pytest_and_the_commands_have_the_same_options(project: Project) -> None:
    run, compare, of_pytest = Mock(), Mock(), Mock()
    COMMANDS["run"].add_arguments(run)
    COMMANDS["compare"].add_arguments(compare)
    pytest_addoption(of_pytest)
    defined = listed(of_pytest.getgroup.return_value.addoption)
    assert list(defined) == list(options.OPTIONS)
    assert listed(run.add_argument) == defined
    of_compare = listed(compare.add_argument)
    # A comparison's base is what it compares with.
    shared = [name for name in of_compare if name in defined and name != "--base"]
    assert len(shared) > 10
    assert all(of_compare[name] == defined[name] for name in shared)
    result = project.pytester.runpytest_inprocess("--help")
    for name in options.OPTIONS:
        result.stdout.fnmatch_lines([f"  {name}*"])


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("--json x.json", "--results x.json"),
        ("--json -", "--results -"),
        ("--benchmark-compare", "--compare"),
    ],
)
def test_former_names_still_work(former: str, now: str) -> None:
    parser = argparse.ArgumentParser()
    read_options.add_shared(parser)
    asked = read_options.request_of(parser.parse_args(former.split()))
    assert asked == read_options.request_of(parser.parse_args(now.split()))
    assert asked != read_options.request_of(parser.parse_args([]))


def test_a_slowdown_is_a_share_of_the_rows_that_match() -> None:
    slowdowns = tuple(map(read_options.parse_slowdown, ("*int8*=25%", "a*=50")))
    request = options.RunRequest(inject_slowdown=slowdowns)
    shares = [request.slowdown(name) for name in ("a-int8", "int8", "b")]
    assert shares == [0.75, 0.25, 0]
    for text in ("25", "=25", "*=", "*=fast", "*=0", "*=-5", "*=1001", "*=nan"):
        assert refusal(read_options.parse_slowdown, text) == (
            f"inject-slowdown: {text!r} is not allowed; write GLOB=PERCENT, percent"
            " above 0, at most 1000"
        )
