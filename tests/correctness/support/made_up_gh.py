"""A `gh` made up: it records how it is called and answers as a test says."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

OWN = "github-actions[bot]"
URL = "https://github.com/o/r/pull/7#issuecomment-1"
_PROGRAM = """\
#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path({folder!r})
answers = json.loads((folder / "answers.json").read_text())
call = {{"words": sys.argv[1:], "input": sys.stdin.read() if "-" in sys.argv else ""}}
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps(call) + "\\n")
for part, (code, out, err) in answers.items():
    if part in " ".join(sys.argv):
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
sys.exit("no answer was made up")
"""


def comment_of(number: int, text: str, login: str = OWN) -> dict[str, Any]:
    """A comment as the API gives it."""
    return {"id": number, "body": text, "user": {"login": login}}


class MadeUpGh:
    """The program on PATH; `answers` are by a part of its words, the first counts."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder / "gh"
        self._folder.mkdir()
        program = self._folder / "gh"
        text = _PROGRAM.format(python=sys.executable, folder=str(self._folder))
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        patch.setenv("PATH", str(self._folder))
        patch.delenv("GITHUB_REPOSITORY", raising=False)

    def answer(
        self,
        *pages: Sequence[object],
        refusals: dict[str, str] | None = None,
        sent: str = "",
    ) -> None:
        """Have the pages of comments, and lines on stderr by a part of the words.

        `sent` is what it says to a comment that is sent.
        """
        answers: dict[str, tuple[int, str, str]] = {
            part: (1, "", line) for part, line in (refusals or {}).items()
        }
        viewer = json.dumps({"data": {"viewer": {"login": OWN}}})
        answers.setdefault("graphql", (0, viewer, ""))
        answers.setdefault("--paginate", (0, "".join(map(json.dumps, pages)), ""))
        answers.setdefault("--method", (0, sent or json.dumps({"html_url": URL}), ""))
        path = self._folder / "answers.json"
        path.write_text(json.dumps(answers), encoding="utf-8")

    @property
    def calls(self) -> list[tuple[str, Any]]:
        """The words of each call after `gh api`, and its input."""
        path = self._folder / "calls.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        assert all(call["words"][0] == "api" for call in calls)
        return [
            (" ".join(call["words"][1:]), json.loads(call["input"] or "null"))
            for call in calls
        ]
