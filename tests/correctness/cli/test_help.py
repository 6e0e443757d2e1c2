"""A command without its next word prints its help, and does not pass."""

import pytest

from tests.correctness.support.command_line import CommandLine


@pytest.mark.parametrize(
    ("words", "usage", "listed"),
    [
        ((), "usage: llama-perf [-h] COMMAND ...", "compare"),
        (("baseline",), "usage: llama-perf baseline [-h] ACTION ...", "record"),
    ],
)
def test_alone_it_prints_help(
    cli: CommandLine, words: tuple[str, ...], usage: str, listed: str
) -> None:
    # As in git it is an error: a script that lost its command must not pass.
    output, error = cli(*words, code=2)
    assert output.startswith(f"{usage}\n")
    assert f"\n    {listed} " in output
    assert error == ""
