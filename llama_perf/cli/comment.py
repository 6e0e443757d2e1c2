"""`llama-perf comment`: a run's results as a comment on a pull request."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.files import check_apart, check_writable, read_text, write_atomically
from llama_perf.report.comment import body, has_news, marker
from llama_perf.results.run import read_merged
from llama_perf.run.numbers import Number
from llama_perf.run.pull_request import PullRequest, parse_pages, send
from llama_perf.strict_json import to_json

HELP = "comment on a pull request with a run's results, and update that comment"
_NUMBER = Number(int, "a whole number above 0", lambda number: number > 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "results",
        metavar="RESULTS",
        type=Path,
        nargs="+",
        help="the results of a run, or of its parts (--results FILE)",
    )
    parser.add_argument(
        "--pr",
        metavar="N",
        type=_NUMBER,
        required=True,
        help="the number of the pull request",
    )
    parser.add_argument(
        "--repo",
        metavar="OWNER/NAME",
        help="its repository (default: $GITHUB_REPOSITORY, or that of the working"
        " directory)",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="each name has a comment of its own (default: the device key)",
    )
    parser.add_argument(
        "--link", metavar="URL", help="where the run and its files can be seen"
    )
    parser.add_argument(
        "--always",
        action="store_true",
        help="make a comment even if every row is the same; one that is there is"
        " updated in any case",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="write the API's request as JSON (method, path, body) instead of sending"
        " it by gh",
    )
    parser.add_argument(
        "--comments",
        metavar="FILE",
        type=Path,
        help="with --output, the pull request's comments as JSON, as gh api lists them",
    )


def main(arguments: argparse.Namespace) -> int:
    """Send the comment or write its request; returns 0, whatever the rows' verdicts."""
    repository = arguments.repo or os.environ.get("GITHUB_REPOSITORY")
    _check("repo", repository, r"[\w.-]+/[\w.-]+", "OWNER/NAME")
    link = r"https?://[^\s()<>]+"
    _check("link", arguments.link, link, "an address that begins with https://")
    _check("name", arguments.name, r"\w[\w. ]*(-[\w. ]+)*", "letters, digits, '.', '-'")
    if arguments.comments is not None and arguments.output is None:
        reason = "it belongs to --output FILE; gh asks for the comments itself"
        raise SpecError("comments", str(arguments.comments), reason)
    if arguments.output is not None:
        if repository is None:
            reason = "a request in a file names its repository: give --repo"
            raise UserError(f"repo: {reason} OWNER/NAME")
        check_writable("output", arguments.output)
        read = filter(None, [*arguments.results, arguments.comments])
        check_apart(
            [("output", arguments.output)],
            [("a file that is read", path) for path in read],
        )
    report = read_merged(arguments.results)
    name = arguments.name or report.environment.device_key
    pull_request = PullRequest(
        repository=repository or "{owner}/{repo}", number=arguments.pr
    )
    if arguments.output is None:
        comments = pull_request.own_comments()
    else:
        comments = _comments_in(arguments.comments)
    known = pull_request.found(comments, marker(name))
    if known is None and not has_news(report) and not arguments.always:
        print("no comment: there is none yet, and every row is the same (--always)")
        return 0
    text = body(report, name=name, link=arguments.link)
    request = pull_request.request(text, known)
    done = "made" if known is None else "updated"
    if arguments.output is None:
        print(f"{done} {send(request)}")
        return 0
    write_atomically(arguments.output, to_json(request))
    print(f"to be {done}: {request.method} {request.path}, in {arguments.output}")
    return 0


def _check(field: str, value: str | None, pattern: str, allowed: str) -> None:
    if value is not None and not re.fullmatch(pattern, value, re.ASCII):
        raise SpecError(field, value, f"allowed: {allowed}")


def _comments_in(path: Path | None) -> list[Any]:
    """The comments in a file, in one list or several; raises RecordError."""
    if path is None:
        return []
    text = read_text(path, error=RecordError)
    try:
        pages = parse_pages(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: Invalid JSON: {error}") from None
    comments = []
    for page in pages:
        if not isinstance(page, list):
            raise RecordError(f"{path}: it holds no list of comments")
        comments += page
    for comment in comments:
        if not isinstance(comment, dict) or not isinstance(comment.get("id"), int):
            raise RecordError(f"{path}: a comment in it has no id that is a number")
    return comments
