"""The command line in this process, and the one line of its refusals."""

from __future__ import annotations

import re

import pytest

from llama_perf.cli.main import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `llama-perf WORDS` refuses with; fails unless it is one line and code 2."""
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr().err
    line = re.fullmatch(r"llama-perf: error: (.+)\n", told)
    assert line is not None, f"not one line: {told!r}"
    return line[1]
