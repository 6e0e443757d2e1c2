"""`llama-perf history`: runs added, trends drawn, losses named, mistakes in a line."""

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.cli import history as command
from llama_perf.files import CHECKOUT
from llama_perf.gate import change_points
from llama_perf.report.trends import BLOCKS
from llama_perf.results import history
from llama_perf.results.run import Status
from llama_perf.run.revision import commits_between
from llama_perf.strict_json import to_json
from scripts.studies import made_up_history
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.git_commands import git
from tests.correctness.support.histories import KEY, lines, run, steady, stored, written
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    INT8_CPU,
    OTHER,
    baseline_of,
    measured,
    unmeasured,
)

LOST = [*steady(40), *steady(10, 0.9)]


def test_runs_of_several_devices_go_to_files_of_their_own(
    tmp_path: Path, cli: CommandLine
) -> None:
    folder = tmp_path / "history"
    here = run(0, CPU_ROW, INT8_CPU, neighbours=("4242",))
    not_run = unmeasured(Status.NOT_RUN, "no memory", OTHER)
    here = replace(here, selected=3, results=(*here.results, not_run))
    there = replace(run(1), environment=replace(ENVIRONMENT, device_key="other"))
    files = [
        written(tmp_path / f"{number}.json", report)
        for number, report in enumerate((here, there, here))
    ]
    said, _ = cli("history", "add", *files, "--history", str(folder))
    own = history.path_of(folder, KEY)
    assert said.splitlines() == [
        f"{files[0]}: added 2 rows to {own}, 1 row not measured, 2 rows marked as"
        " disturbed",
        f"{files[1]}: added 1 row to {history.path_of(folder, 'other')}",
        f"{files[2]}: added 0 rows to {own}, 2 rows there already, 1 row not measured",
    ]
    assert history.keys(folder) == [KEY, "other"]
    said, _ = cli("history", "show", "--history", str(folder), "--row", CPU_ROW.id)
    assert "tiny.int8wo" not in said
    assert {KEY, "other"} <= set(said.splitlines())


def test_a_loss_fails_and_names_the_commits_between_its_runs(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for number in range(25):
        git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", f"change {number}")
    commits = git(tmp_path, "log", "--format=%h", "--abbrev=12").split()
    slow = [line for line in lines(LOST) if line.tok_s < 95]
    fast = [line for line in lines(LOST) if line.tok_s > 95]
    monkeypatch.setattr(
        command,
        "commits_between",
        lambda old, new: commits_between(old, new, root=tmp_path),
    )

    def check(old: str, new: str) -> Sequence[str]:
        both = [*(replace(line, commit=old) for line in fast)]
        both += [replace(line, commit=new) for line in slow]
        stored(tmp_path / "history", both)
        words = ("history", "check", "--history", str(tmp_path / "history"))
        said, error = cli(*words, code=1)
        assert error == ""
        first, *between, last = said.splitlines()
        assert first == (
            f"{KEY}: {CPU_ROW.id}: tok/s 100.05 -> 90.05 (-10.0%, 10 runs since)"
            f" between 2026-06-09T02:17 ({old}) and 2026-06-10T02:17 ({new})"
        )
        assert last == "1 loss of 2 % or more in the last 30 runs of 1 row"
        return between

    *_, oldest = commits
    shown = check(commits[2], commits[0])
    assert [line.split(maxsplit=1)[1] for line in shown] == ["change 24", "change 23"]
    assert (
        check(oldest, commits[0])[-1] == f"  and 4 more: git log {oldest}..{commits[0]}"
    )
    assert check(commits[0], commits[2]) == [
        f"  {commits[2]} is no later commit than {commits[0]}"
    ]
    assert check(oldest, oldest) == [
        f"  both runs are of {oldest}: no commit lies between them"
    ]
    absent = "--output=x"
    assert check(absent, oldest) == [
        f"  between {absent} and {oldest}, which are not both in this checkout"
    ]


def test_what_passes_a_check(tmp_path: Path, cli: CommandLine) -> None:
    folder = str(tmp_path)
    check = ("history", "check", "--history", folder)
    stored(tmp_path, lines(LOST))
    cli(*check, code=1)
    for options in (("--last", "9"), ("--least", "15")):
        said, _ = cli(*check, *options)
        assert said.startswith("0 losses of ")
    stored(tmp_path, lines([*steady(40), *steady(10, 1.1)]))
    cli(*check)
    few = [replace(line, disturbed="by a neighbour") for line in lines(steady(6))]
    stored(tmp_path, [*few[:1], *lines(steady(6))[1:]])
    said, _ = cli(*check)
    assert said == (
        "0 losses of 2 % or more in the last 30 runs of 1 row; 1 disturbed figure left"
        " out; 1 row with too few runs to show a change\n"
    )


def test_a_damaged_line_is_named_and_decides_nothing(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = stored(tmp_path, lines(LOST))
    whole = path.read_text(encoding="utf-8")
    path.write_text(f"<<<<<<< HEAD\n{whole}", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    for action, code in (("show", 0), ("check", 1)):
        _, error = cli("history", action, "--history", str(tmp_path), code=code)
        assert error.splitlines() == [
            f"llama-perf: skipped: {path}:1: a mark of git around a conflict",
            f"llama-perf: skipped: {tmp_path / 'empty.jsonl'}: it has no line",
        ]


def test_trends_are_drawn_without_otava(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_points, "find_spec", lambda _: None)
    stored(tmp_path, lines(LOST))
    words = "change points need otava, which is not installed: pip install"
    said, _ = cli("history", "show", "--history", str(tmp_path))
    assert said.splitlines()[-1] == f"{words} 'llama-perf[history]'"
    message = cli.refusal("history", "check", "--history", str(tmp_path))
    assert message == f"{words} 'llama-perf[history]'"


def test_a_curve_is_written_in_ascii_where_blocks_are_missing(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, lines(LOST))
    said, _ = cli("history", "show", "--history", str(tmp_path))
    assert set(BLOCKS) & set(said)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert command.main(argument_of("show", tmp_path)) == 0
    stream.seek(0)
    assert "########" in stream.read()


def argument_of(action: str, folder: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([action, "--history", str(folder)])


def test_reports_are_written_by_their_suffix(tmp_path: Path, cli: CommandLine) -> None:
    stored(tmp_path, lines(LOST))
    files = [tmp_path / f"trends.{suffix}" for suffix in ("json", "csv", "md", "txt")]
    reports = [word for path in files for word in ("--report", str(path))]
    said, _ = cli("history", "show", "--history", str(tmp_path), *reports)
    assert files[3].read_text(encoding="utf-8") == said
    document = json.loads(files[0].read_text(encoding="utf-8"))
    assert document["kind"] == "llama-perf trends"
    said, _ = cli("history", "show", "--history", str(tmp_path), "--format", "json")
    assert json.loads(said) == document


@pytest.mark.parametrize("name", ["device.jsonl", "other.jsonl"])
def test_a_report_takes_no_historys_place(
    tmp_path: Path, cli: CommandLine, name: str
) -> None:
    path = stored(tmp_path, lines(steady(3)))
    before = path.read_bytes()
    report = path if name == "device.jsonl" else tmp_path / name
    words = ("history", "show", "--history", str(tmp_path), "--report", str(report))
    reason = "it is also a history; " if report == path else "it would be read as a dev"
    assert reason in cli.refusal(*words)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_an_empty_name_of_a_folder_is_refused(cli: CommandLine) -> None:
    message = cli.refusal("history", "show", "--history", "")
    assert message == "history: '' is not allowed; name a folder"


MISTAKES = (
    (
        "show --history {absent}",
        "history: the folder {absent} has none yet; `llama-perf history add",
    ),
    (
        "check --history {absent}",
        "history: the folder {absent} has none yet; `llama-perf history ad",
    ),
    ("show --history {empty}", "{empty}/cpu-some-2c.jsonl: it has no line"),
    (
        "show --history {good}",
        "history: '{good}' is not allowed; it cannot be listed: ",
    ),
    (
        "show --device cpu-4c",
        "device: 'cpu-4c' has no history in {history}; allowed: cpu",
    ),
    (
        "show --device cpu-s",
        "device: 'cpu-s' has no history in {history}; did you mean c",
    ),
    (
        "show --row *int8*",
        "row: no row of the history matches '*int8*'; `llama-perf hist",
    ),
    (
        "show --row fp32.cpu",
        "row: no row of the history matches 'fp32.cpu'; did you mean",
    ),
    (
        "show --report x.pdf",
        "report: 'x.pdf' is not allowed; allowed: a file that ends ",
    ),
    (
        "show --report {absent}/x.md",
        "report: '{absent}/x.md' is not allowed; its folder d",
    ),
    (
        "show --format pdf",
        "format: 'pdf' is not allowed; allowed: csv, html, json, jsonl, ",
    ),
    ("show --last 0", "last: 0 is not allowed; allowed: a whole number above 0"),
    (
        "check --least x",
        "least: 'x' is not allowed; allowed: a percentage from 0 to 99",
    ),
    ("add {good} {slowed}", "{slowed}: history: {row} ran with an injected slowdown"),
    ("add {good} {later}", "{later}: schema_version: 9 is not allowed; allowed: 1"),
    ("add {good} {baseline}", "{baseline}: it is a baseline: `llama-perf diff F"),
    (
        "add {good} {own}",
        "{own}: it is a device's history: `llama-perf history show --his",
    ),
    ("add {good} {absent}", "{absent}: cannot be read: No such file or directory"),
    ("add {good} --history {good}", "history: '{good}' is not allowed; "),
)


def test_mistakes_are_one_line_and_change_nothing(
    tmp_path: Path, cli: CommandLine
) -> None:
    folder = tmp_path / "history"
    own = stored(folder, lines(steady(3)))
    stored(tmp_path / "empty", [])
    before = own.read_bytes()
    named = {name: str(tmp_path / name) for name in ("absent", "empty", "history")}
    texts = {
        "good": to_json(run()),
        "slowed": to_json(run(1, injected_slowdown=0.1)),
        "later": json.dumps(json.loads(to_json(run())) | {"schema_version": 9}),
        "baseline": to_json(baseline_of(measured())),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        named[name] = str(tmp_path / f"{name}.json")
    named |= {"own": str(own), "row": CPU_ROW.id}
    for words, message in MISTAKES:
        asked = words.format_map(named).split()
        if "--history" not in asked:
            asked += ["--history", str(folder)]
        said = cli.refusal("history", *asked)
        assert said.startswith(message.format_map(named)), words
    assert own.read_bytes() == before


def test_the_document_has_what_is_printed(tmp_path: Path, cli: CommandLine) -> None:
    made_up_history.main([str(tmp_path)])
    document = (CHECKOUT / "docs" / "history.md").read_text(encoding="utf-8")
    said, _ = cli("history", "show", "--history", str(tmp_path))
    assert said in document
    said, _ = cli("history", "check", "--history", str(tmp_path), code=1)
    # A shallow clone lacks the commits.
    first, *_, last = said.splitlines()
    assert f"\n{first}\n" in document
    assert f"\n{last}\n" in document


def test_another_kind_of_file_is_no_device_of_the_folder(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = stored(tmp_path, [])
    path.write_text(to_json(run()), encoding="utf-8")
    message = cli.refusal("history", "show", "--history", str(tmp_path))
    assert message.startswith(f"{path}:1: ")
    assert message.endswith("no line of the file can be read")
