"""A comment on a pull request, by GitHub's program `gh`: found by its marker, updated.

Knows nothing of what the comment says.
"""

import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llama_perf.errors import UserError
from llama_perf.strict_json import record

_TIMEOUT_S = 120
"""How long `gh` may take: all pages of a long pull request come in a few seconds."""


@record
class Request:
    """A request of GitHub's API: `gh api --method METHOD PATH` sends its `body`."""

    method: str
    path: str
    body: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PullRequest:
    """A pull request: its number and its repository, OWNER/NAME.

    `{owner}/{repo}` is for `gh` that of the working directory.
    """

    repository: str
    number: int

    @property
    def _comments(self) -> str:
        return f"repos/{self.repository}/issues/{self.number}/comments"

    def found(self, comments: Iterable[Any], marker: str) -> int | None:
        """The id of the first comment that begins with the marker, None for none."""
        for comment in comments:
            if str(comment.get("body") or "").lstrip().startswith(marker):
                return int(comment["id"])
        return None

    def request(self, body: str, comment_id: int | None) -> Request:
        """What updates the comment, or makes one where it has no id yet."""
        if comment_id is None:
            return Request(method="POST", path=self._comments, body={"body": body})
        path = f"repos/{self.repository}/issues/comments/{comment_id}"
        return Request(method="PATCH", path=path, body={"body": body})

    def own_comments(self) -> list[Any]:
        """The comments of the user that `gh` is logged in as; raises UserError."""
        # The token of a workflow may not ask `user`.
        with _usual_answers():
            (answer,) = _gh("graphql", "-f", "query={viewer{login}}")
            own: str = answer["data"]["viewer"]["login"]
            # All pages, a list each.
            pages = _gh("--paginate", f"{self._comments}?per_page=100")
            every = [comment for page in pages for comment in page]
            return [one for one in every if _login(one) == own.removesuffix("[bot]")]


def _login(comment: Any) -> str:
    # That of an app is "github-actions[bot]" in one API, "github-actions" in the other.
    login: str = (comment.get("user") or {}).get("login") or ""
    return login.removesuffix("[bot]")


def send(request: Request) -> str:
    """Send the request by `gh`; the address of the comment; raises UserError."""
    words = ("--method", request.method, request.path, "--input", "-")
    with _usual_answers():
        (answer,) = _gh(*words, text=json.dumps(request.body))
        return str(answer["html_url"])


@contextmanager
def _usual_answers() -> Iterator[None]:
    """Raise UserError where the block meets an answer that lacks what it reads."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"an answer lacks what is read from it: {error!r}"
        raise UserError(f"comment: gh api: {reason}") from None


def parse_pages(text: str) -> list[Any]:
    """The documents that follow one another in a text of JSON; raises ValueError."""
    decoder, documents, place = json.JSONDecoder(), [], 0
    text = text.strip()
    while place < len(text):
        document, place = decoder.raw_decode(text, place)
        documents.append(document)
        while text[place : place + 1].isspace():
            place += 1
    return documents


def _gh(*words: str, text: str | None = None) -> list[Any]:
    """The JSON that `gh api WORDS` prints; raises UserError with its own words."""
    command: Sequence[str] = ("gh", "api", *words)
    # With the address, and without the question.
    called = " ".join(command[: 3 if words[0] == "graphql" else 5])
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer in {_TIMEOUT_S} s"
        raise UserError(f"comment: {called}: {reason}") from None
    except OSError as error:
        reason = "it is not installed"
        if not isinstance(error, FileNotFoundError):
            reason = f"it cannot be run: {error.strerror}"
        raise UserError(
            f"comment: gh: {reason}; --output FILE writes the request to a file"
        ) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise UserError(f"comment: {called}: {lines[0]}")
    try:
        pages = parse_pages(done.stdout)
    except ValueError:
        pages = []
    if not pages:
        raise UserError(f"comment: {called}: its answer is no JSON")
    return pages
