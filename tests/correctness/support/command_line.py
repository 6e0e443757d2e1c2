"""The command line in this process, and the line with which it refuses."""

import re

import pytest

from llama_perf.cli.main import main

TINY = (
    *("generate", "--checkpoint_path", "stories15M", "--device", "cpu"),
    *("--precision", "float32", "--num_samples", "1", "--max_new_tokens", "3"),
)
"""Words that generate with a small model, once."""


class CommandLine:
    """`llama-perf` in this process; what was printed before is dropped."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str, code: int | None = 0) -> tuple[str, str]:
        """stdout and stderr of `llama-perf WORDS`; it ends with `code`, None: any."""
        self._capsys.readouterr()
        ended = main(words)
        assert code in (ended, None)
        return self._capsys.readouterr()

    def refusal(self, *words: str) -> str:
        """The message of a refused `llama-perf WORDS`; it must be one line."""
        _, error = self(*words, code=2)
        line = re.fullmatch(r"llama-perf: error: (.+)\n", error)
        assert line is not None, f"not one line: {error!r}"
        return line[1]
