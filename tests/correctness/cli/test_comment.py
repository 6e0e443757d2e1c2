"""`llama-perf comment`, with a `gh` that is made up."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.report.comment import marker
from llama_perf.results.run import Comparison, Verdict
from llama_perf.run import pull_request
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.made_up_gh import URL, MadeUpGh, comment_of
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    report_of,
)

MARKER = marker(ENVIRONMENT.device_key)
OLD = f"{MARKER}\nan older text"
VIEWER, LISTS = (
    "graphql -f query={viewer{login}}",
    "--paginate repos/o/r/issues/7/comments?per_page=100",
)


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpGh:
    return MadeUpGh(tmp_path, monkeypatch)


def words(folder: Path, *options: str, slower: bool = True) -> list[str]:
    verdict = Verdict.SLOWER if slower else Verdict.SAME
    end = Comparison(id=CPU_ROW.id, verdict=verdict, reason="because", failed=slower)
    path = folder / "results.json"
    report = report_of(measured(), comparisons=(end,))
    path.write_text(to_json(report), encoding="utf-8")
    return ["comment", str(path), "--pr", "7", "--repo", "o/r", *options]


FOUND: dict[str, tuple[list[list[dict[str, Any]]], int | None]] = {
    "none": ([[]], None),
    "another's": ([[comment_of(3, OLD, "somebody")]], None),
    "no marker": ([[comment_of(3, f"> {MARKER}"), comment_of(4, "")]], None),
    "of another name": ([[comment_of(3, marker("cpu-some-2c-b"))]], None),
    "first page": ([[comment_of(3, OLD), comment_of(4, OLD)]], 3),
    "second page": ([[comment_of(3, "hi")], [comment_of(12, OLD)]], 12),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_comment_is_made_once_and_then_updated(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine, case: str
) -> None:
    pages, number = FOUND[case]
    gh.answer(*pages)
    output, _ = cli(*words(tmp_path))
    method, path = "POST", "repos/o/r/issues/7/comments"
    if number is not None:
        method, path = "PATCH", f"repos/o/r/issues/comments/{number}"
    assert output == f"{'made' if number is None else 'updated'} {URL}\n"
    (viewer, _), (lists, _), (sent, body) = gh.calls
    assert (viewer, lists) == (VIEWER, LISTS)
    assert sent == f"--method {method} {path} --input -"
    assert body.keys() == {"body"}
    assert body["body"].startswith(f"{MARKER}\n")
    assert "**1 row failed**" in body["body"]


def test_nothing_new_is_said_only_where_something_was(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine
) -> None:
    same = words(tmp_path, slower=False)
    gh.answer([])
    output, _ = cli(*same)
    assert output.startswith("no comment: there is none yet, and every row is the same")
    assert len(gh.calls) == 2
    cli(*same, "--always")
    assert gh.calls[-1][0].startswith("--method POST ")
    gh.answer([comment_of(5, OLD)])
    cli(*same)
    sent, body = gh.calls[-1]
    assert sent.startswith("--method PATCH repos/o/r/issues/comments/5 ")
    assert "No row failed: 1 row: 1 run, 0 NOT_RUN (1 SAME)." in body["body"]


def test_two_runners_have_two_comments(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine
) -> None:
    gh.answer([comment_of(5, OLD)])
    cli(*words(tmp_path, "--name", "runner-2"))
    sent, body = gh.calls[-1]
    assert sent.startswith("--method POST ")
    assert body["body"].startswith(marker("runner-2"))


REFUSALS = {
    "graphql": "gh: To use GitHub CLI in a workflow, set the GH_TOKEN variable",
    "--paginate": "error connecting to api.github.com",
    "--method": "gh: Resource not accessible by integration (HTTP 403)",
}


@pytest.mark.parametrize("part", REFUSALS)
def test_what_gh_refuses_is_one_line(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine, part: str
) -> None:
    gh.answer([], refusals={part: f"{REFUSALS[part]}\nand more of it\n"})
    message = cli.refusal(*words(tmp_path))
    assert message.startswith(f"comment: gh api {part}")
    assert message.endswith(f": {REFUSALS[part]}")


@pytest.mark.parametrize("answer", [" ", "<html>"])
def test_an_answer_that_is_no_json_is_one_line(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine, answer: str
) -> None:
    gh.answer([], sent=answer)
    message = cli.refusal(*words(tmp_path))
    called = "gh api --method POST repos/o/r/issues/7/comments"
    assert message == f"comment: {called}: its answer is no JSON"


@pytest.mark.parametrize(
    ("pages", "sent", "lacks"),
    [
        ([[]], "[]", "list indices must be"),
        ([[]], "{}", "KeyError('html_url')"),
        ([["no comment"]], "{}", "'str' object has no attribute 'get'"),
        ([5], "{}", "'int' object is not iterable"),
    ],
)
def test_an_answer_of_another_shape_is_one_line(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine, pages: Any, sent: str, lacks: str
) -> None:
    gh.answer(*pages, sent=sent)
    message = cli.refusal(*words(tmp_path))
    assert message.startswith("comment: gh api: an answer lacks what is read from it: ")
    assert lacks in message


def test_a_gh_that_does_not_answer_is_ended(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gh"
    program.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(pull_request, "_TIMEOUT_S", 0.1)
    message = cli.refusal(*words(tmp_path))
    assert message.endswith(": no answer in 0.1 s")


def test_a_request_is_not_written_over_what_is_read(
    tmp_path: Path, cli: CommandLine
) -> None:
    command = words(tmp_path)
    results = command[1]
    lacks = [word for word in command if word not in {"--repo", "o/r"}]
    message = cli.refusal(*lacks, "--output", str(tmp_path / "out.json"))
    assert message.startswith("repo: a request in a file names its repository: give ")
    message = cli.refusal(*command, "--output", results)
    assert message.endswith(
        "it is also a file that is read; allowed: a file of its own"
    )


def test_without_gh_the_request_is_written(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = cli.refusal(*words(tmp_path))
    assert message == (
        "comment: gh: it is not installed; --output FILE writes the request to a file"
    )
    out, known = tmp_path / "request.json", tmp_path / "comments.json"
    output, _ = cli(*words(tmp_path, "--output", str(out)))
    path = "repos/o/r/issues/7/comments"
    assert output == f"to be made: POST {path}, in {out}\n"
    request = json.loads(out.read_text(encoding="utf-8"))
    assert (request["method"], request["path"]) == ("POST", path)
    assert request["body"]["body"].startswith(MARKER)
    pages = [[comment_of(1, "hi")], [comment_of(9, OLD)]]
    known.write_text("\n".join(map(json.dumps, pages)), encoding="utf-8")
    options = ("--output", str(out), "--comments", str(known))
    output, _ = cli(*words(tmp_path, *options))
    assert output.startswith("to be updated: PATCH repos/o/r/issues/comments/9, in ")
    for text, reason in (
        ("[{", "Invalid JSON: "),
        ("{}", "it holds no list of comments"),
        ('[{"body": "x"}]', "a comment in it has no id that is a number"),
    ):
        known.write_text(text, encoding="utf-8")
        message = cli.refusal(*words(tmp_path, *options))
        assert message.startswith(f"{known}: {reason}")


BAD = {
    "--pr=0": "pr: 0 is not allowed; allowed: a whole number above 0",
    "--repo=r": "repo: 'r' is not allowed; allowed: OWNER/NAME",
    "--name=a-->b": "name: 'a-->b' is not allowed; allowed: letters, digits, '.', '-'",
    "--link=x) y": "link: 'x) y' is not allowed; allowed: an address that begins with",
    "--comments=x": "comments: 'x' is not allowed; it belongs to --output FILE",
    "--output=no/such/file": "output: 'no/such/file' is not allowed; its folder does",
}


@pytest.mark.parametrize("option", BAD)
def test_bad_input_is_one_line_before_anything_is_asked(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine, option: str
) -> None:
    gh.answer([])
    assert cli.refusal(*words(tmp_path, option)).startswith(BAD[option])
    assert not gh.calls


def test_runs_of_two_machines_are_refused(
    tmp_path: Path, gh: MadeUpGh, cli: CommandLine
) -> None:
    other = tmp_path / "other.json"
    environment = replace(ENVIRONMENT, device_key="cpu-other")
    text = to_json(report_of(measured(), environment=environment))
    other.write_text(text, encoding="utf-8")
    command, *rest = words(tmp_path)
    message = cli.refusal(command, str(other), *rest)
    assert "device_key: cpu-other -> cpu-some-2c" in message
    assert not gh.calls
