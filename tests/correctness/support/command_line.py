"""The command line in this process, and the line with which it refuses."""

from __future__ import annotations

import re

import pytest

from llama_perf.cli.main import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a refused `llama-perf WORDS`; it must be one line, the code 2."""
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    line = re.fullmatch(r"llama-perf: error: (.+)\n", error)
    assert line is not None, f"not one line: {error!r}"
    return line[1]
