"""Where pytest writes, what it is to run, and how a user's mistake ends it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest

from llama_perf.errors import UserError
from llama_perf.run.display import Display


def reporter(config: pytest.Config) -> pytest.TerminalReporter | None:
    """What prints pytest's report, None where a user turned it off."""
    found = config.pluginmanager.get_plugin("terminalreporter")
    assert found is None or isinstance(found, pytest.TerminalReporter)
    return found


def display(config: pytest.Config) -> Display:
    """Where pytest writes, in colour where pytest does; nothing without it."""
    found = reporter(config)
    if found is None:
        return Display.on(sys.stdout, quiet=True)
    return Display.on(sys.stdout, no_color=not found.hasmarkup)


@contextmanager
def written(config: pytest.Config) -> Iterator[None]:
    """Let the block write to pytest's terminal, at the beginning of a line.

    A row runs in a process of its own: nothing that it prints is captured here.
    """
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        if reporter(config) is not None:
            writer = config.get_terminal_writer()
            if writer.width_of_current_line:
                writer.line()
            writer.flush()
        yield


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a user's mistake into pytest's own, which is shown as one line."""
    try:
        yield
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def collected(session: pytest.Session, fixture: str) -> list[str]:
    """The ids of the rows whose tests are to run; none where pytest only collects.

    `fixture` is the parameter of those tests.
    """
    option = session.config.option
    broken = session.testsfailed and not option.continue_on_collection_errors
    if option.collectonly or broken:
        return []
    return [
        str(item.callspec.params[fixture])
        for item in session.items
        if isinstance(item, pytest.Function) and fixture in item.fixturenames
    ]


def fail_for(problems: Sequence[str], session: pytest.Session) -> None:
    """Have a session fail that could not write what its user wants.

    Without a terminal's reporter the problems go to stderr.
    """
    if problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    if reporter(session.config) is None:
        for problem in problems:
            print(f"ERROR: {problem}", file=sys.stderr)
