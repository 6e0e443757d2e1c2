"""`llama-perf diff`, and `llama-perf baseline diff`, which shows the same."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.cli import diff
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import Report, Status
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.git_commands import git
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    ENVIRONMENT,
    OTHER,
    baseline_of,
    baseline_of_processes,
    edited,
    measured,
    report_of,
    stored_in,
    unmeasured,
)

KEY = ENVIRONMENT.device_key
STORED = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE})
FASTER = baseline_of_processes(
    {CPU_ROW: [1.1 * speed for speed in ALIKE], OTHER: ALIKE}
)
SLOW = report_of(measured(tok_s=50.0), measured(OTHER))


@pytest.fixture
def given(tmp_path: Path) -> Callable[[str, Baseline | Report], str]:
    """Writes a document, and returns its path as text."""

    def write(name: str, document: Baseline | Report) -> str:
        path = tmp_path / name
        path.write_text(to_json(document), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folder of baselines of a repository of two commits; the second is FASTER."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q")
    for baseline in (STORED, FASTER):
        stored_in(root / "baselines", baseline)
        (root / "run.json").write_text(to_json(SLOW), encoding="utf-8")
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", "one")
    return root / "baselines"


def test_each_kind_of_document_is_compared(
    cli: CommandLine, given: Callable[..., str], tmp_path: Path
) -> None:
    save = tmp_path / "save.json"
    text = {"benchmarks": [], "llama_perf": json.loads(to_json(STORED))}
    save.write_text(json.dumps(text), encoding="utf-8")
    baseline, slow = given("baseline.json", STORED), given("run.json", SLOW)
    output, _ = cli("diff", str(save), baseline)
    assert "\n2 rows, B compared with A: 2 SAME\n" in output
    output, _ = cli("diff", baseline, slow, code=1)
    assert f"\nSLOWER {CPU_ROW.id}: tok/s 100.00 -> 50.00 (-50.0%)" in output
    output, _ = cli("diff", baseline, slow, "--row", "*compile*")
    assert CPU_ROW.id not in output.splitlines()[-1]
    assert "1 row, B compared with A: 1 SAME" in output


def test_stdin_is_read_once(
    cli: CommandLine, given: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = given("baseline.json", STORED)
    monkeypatch.setattr(sys, "stdin", io.StringIO(to_json(SLOW)))
    output, _ = cli("diff", baseline, "-", code=1)
    assert "\nB: stdin, recorded " in output
    message = cli.refusal("diff", "-", "-")
    assert message == "diff: '-' is there twice; stdin can be read once"


def test_a_limit_of_the_users_decides(
    cli: CommandLine, given: Callable[..., str]
) -> None:
    then, now = (
        given(f"{tok_s}.json", report_of(measured(tok_s=tok_s))) for tok_s in (100, 97)
    )
    cli("diff", then, now)
    cli("diff", then, now, "--limit", "3.5%")
    cli("diff", then, now, "--limit", "2", code=1)


def test_revisions_and_their_files(cli: CommandLine, checkout: Path) -> None:
    folder = ["--baselines", str(checkout)]
    output, _ = cli("diff", "HEAD~1:", "HEAD:", *folder)
    assert output.startswith("A: HEAD~1:, recorded ")
    assert "1 FASTER, 1 SAME" in output
    output, _ = cli("diff", "HEAD~1:", "HEAD:run.json", *folder, code=1)
    assert "\nB: HEAD:run.json, recorded " in output
    path = f"HEAD~1:baselines/{KEY}/baseline.json"
    output, _ = cli("diff", path, str(checkout / KEY / "baseline.json"), *folder)
    assert "1 FASTER" in output
    # A date may have colons, and a baseline may be gone from the working tree.
    shutil.rmtree(checkout / KEY)
    words = ["diff", "HEAD@{1970-01-01 10:00:00}:run.json", "HEAD:", *folder]
    cli(*words, "--device", KEY)
    message = cli.refusal("diff", "HEAD:", "HEAD~1:", *folder)
    assert message.startswith("device: name one by --device KEY; ")
    assert message.endswith(" has the baselines of: none")


def test_a_file_named_like_a_revision_wins(
    cli: CommandLine,
    given: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given("HEAD:", STORED)
    given("it", STORED)
    monkeypatch.chdir(tmp_path)
    assert "2 SAME" in cli("diff", "HEAD:", "it")[0]


def test_reports_and_formats(
    cli: CommandLine, given: Callable[..., str], tmp_path: Path
) -> None:
    pytest.importorskip("vl_convert")
    words = ["diff", given("a.json", STORED), given("b.json", SLOW)]
    files = [tmp_path / f"out.{suffix}" for suffix in ("md", "csv", "jsonl", "html")]
    reports = [word for file in files for word in ("--report", str(file))]
    output, _ = cli(*words, "--format", "json", *reports, "--limit", "1", code=1)
    assert json.loads(output)["limit"] == 0.01
    for file, start in zip(
        files,
        ("### llama-perf: 2 rows, ", "id,name,", '{"id": ', "<!doctype"),
        strict=True,
    ):
        assert file.read_text(encoding="utf-8").startswith(start)


def test_other_devices_need_a_word(cli: CommandLine, given: Callable[..., str]) -> None:
    elsewhere = replace(ENVIRONMENT, device_key="cpu-other")
    words = [
        "diff",
        given("a.json", STORED),
        given("b.json", report_of(measured(tok_s=1.0), environment=elsewhere)),
    ]
    message = cli.refusal(*words)
    assert message == (
        f"diff: they are of other devices, {KEY} and cpu-other; --across-devices shows"
        " the changes and judges nothing"
    )
    output, _ = cli(*words, "--across-devices")
    assert "-99.0%" in output
    assert "1 INCOMPARABLE" in output


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without baselines, and files of which C, D and E fit nothing."""
    folder = tmp_path_factory.mktemp("mistaken")
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    (folder / "baselines").mkdir()
    texts = dict.fromkeys("ABD", to_json(STORED))
    texts["C"] = to_json(report_of(measured(replace(CPU_ROW, max_new_tokens=7))))
    texts["E"] = '{"benchmarks": []}'
    texts["commit"] = git(folder, "rev-parse", "HEAD")[:12]
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    edited(folder / "D", {"schema_version": 3})
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("A", "diff: 'A' alone; name two or more to compare"),
        ("A none.json", "none.json: cannot be read: No such file or directory"),
        ("A HEAD", "HEAD: no such file; the baseline of that revision is written as H"),
        ("A .", ".: cannot be read: Is a directory"),
        ("A none:", "diff: 'none' names no commit of "),
        ("A --help:x", "unrecognized arguments: --help:x"),
        ("A HEAD:none.json", "'HEAD:none.json': commit "),
        ("A HEAD:", f"'HEAD:': commit {{commit}} has no baseline of {KEY}"),
        ("HEAD: HEAD: --device cpx", "'HEAD:': commit {commit} has no baseline of cpx"),
        ("A B --limit many", "limit: 'many' is not allowed; allowed: a percentage fro"),
        ("A B --limit nan", "limit: 'nan' is not allowed; allowed: a percentage from "),
        ("A B --limit -1", "limit: '-1' is not allowed; allowed: a percentage from 0 "),
        ("A B --limit 100%", "limit: '100%' is not allowed; allowed: a percentage fro"),
        ("A B --metric x", "metric: 'x' is not allowed; allowed: all, tok/s, spread, "),
        ("A B --format pdf", "format: 'pdf' is not allowed; allowed: csv, html, json,"),
        ("A B --format csv --metric peak", "metric: 'peak' is not allowed; csv always"),
        (
            "none none --report x.pdf",
            "report: 'x.pdf' is not allowed; allowed: a file ",
        ),
        ("none none --report no/x.md", "report: 'no/x.md' is not allowed; its folder "),
        (
            "A B --row *int3*",
            "row: no row of these recordings matches '*int3*'; there a",
        ),
        ("A C", "diff: A and C have no row in common"),
        ("A D", "D: schema_version: 3 is not allowed; allowed: 1 or 2"),
        ("A E", "E: it holds no llama-perf records; save one with pytest tests/perf "),
    ],
)
def test_a_mistake_is_one_line(
    cli: CommandLine,
    mistaken: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    message: str,
) -> None:
    monkeypatch.chdir(mistaken)
    refused = cli.refusal("diff", *words.split(), "--baselines", "baselines")
    commit = (mistaken / "commit").read_text(encoding="utf-8")
    assert refused.startswith(message.replace("{commit}", commit))


def test_a_report_that_cannot_be_written_later_is_an_error(
    cli: CommandLine,
    given: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "out" / "x.md"
    path.parent.mkdir()
    words = ["diff", given("a.json", STORED), given("b.json", STORED)]
    compared = diff.compared

    def then_forbid(*arguments: Any) -> object:
        path.mkdir()
        return compared(*arguments)

    monkeypatch.setattr(diff, "compared", then_forbid)
    output, error = cli(*words, "--report", str(path), code=2)
    assert "2 SAME" in output
    assert error.startswith(f"llama-perf: error: {path}: cannot be written: ")


def test_the_baselines_of_a_checkout_that_changed(
    cli: CommandLine, checkout: Path, given: Callable[..., str]
) -> None:
    words = ["baseline", "diff", "--baselines", str(checkout)]
    old = given("old.json", FASTER)
    assert cli(*words, old)[0] == f"{KEY}:\nthe same\n"
    assert cli.refusal(*words, "none").startswith("diff: 'none' names no commit of ")
    third = replace(CPU_ROW, max_new_tokens=7)
    changed = baseline_of_processes({CPU_ROW: ALIKE, third: ALIKE})
    output, _ = cli(*words, given("other.json", changed))
    assert "1 row, B compared with A: 1 FASTER" in output
    assert f"only in A: {third.id}\nonly in B: {OTHER.id}\n" in output
    # A slower row ends with 0: it is no gate.
    output, _ = cli(*words, given("fast.json", baseline_of(measured(tok_s=1000.0))))
    assert f"SLOWER {CPU_ROW.id}: " in output


def test_rows_of_the_first_revisions_keep_their_ids(cli: CommandLine) -> None:
    published = baselines.path_of(baselines.baselines_folder(), baselines.REFERENCE_KEY)
    output, _ = cli("diff", str(published), str(published), "--row", "*int4wo*")
    assert "\n2 rows, B compared with A: 2 SAME\n" in output


def test_rows_that_were_not_measured_are_shown(
    cli: CommandLine, given: Callable[..., str]
) -> None:
    broken = report_of(unmeasured(Status.INVALID, "it broke"), measured(OTHER))
    output, _ = cli("diff", given("a.json", SLOW), given("b.json", broken), code=1)
    assert f"\nINVALID {CPU_ROW.id}: it broke\n" in output
