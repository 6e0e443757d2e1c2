"""Shards of a set, and their results merged: `--shard`, `report`, `cuda_table`."""

import json
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError, SpecError
from llama_perf.gate.verdict import not_compared
from llama_perf.results.run import RowResult, Status, Verdict, read_merged
from llama_perf.rows.selection import shard
from llama_perf.strict_json import to_json
from scripts.offline import cuda_table
from scripts.offline.cuda_table import main as table
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    report_of,
    unmeasured,
)

ROWS = [replace(CPU_ROW, max_new_tokens=count) for count in range(1, 8)]


def write(path: Path, *results: RowResult, **changes: Any) -> Path:
    path.write_text(to_json(report_of(*results, **changes)), encoding="utf-8")
    return path


def test_shards_are_every_row_once(cli: CommandLine) -> None:
    parts = [shard(ROWS, f"{number}/3") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(chain(*parts), key=ROWS.index) == ROWS
    assert parts[1] == [ROWS[1], ROWS[4]]
    assert "1 row" in cli("rows", "--set", "reference", "--shard", "2/43")[0]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/8", "1", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^shard: .* allowed: I/N.* the 7 rows"):
        shard(ROWS, text)


def test_pieces_of_one_commit_are_one_report(tmp_path: Path) -> None:
    first, second, *_ = ROWS
    late = unmeasured(Status.NOT_RUN, "time-budget: 3 of 9 s are left", second)
    paths = [
        write(tmp_path / "a", measured(first), late),
        write(tmp_path / "b", measured(second), selected=3),
    ]
    report = read_merged(paths)
    assert [result.row for result in report.results] == [first, second]
    assert all(result.measurement for result in report.results)
    # The second run stopped before two of its rows.
    assert report.selected == 4
    assert read_merged(list(reversed(paths))).results[0].measurement is not None
    other = replace(ENVIRONMENT, commit="b" * 40)
    write(tmp_path / "b", measured(second), environment=other)
    with pytest.raises(RecordError, match=r"b: it does not belong to .*a: commit: "):
        read_merged(paths)


def test_a_table_is_merged_and_its_baseline_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "reference-1-of-2.json", measured(ROWS[0]))
    crashed = unmeasured(Status.INVALID, "it crashed", ROWS[2])
    write(tmp_path / "reference-2-of-2.json", measured(ROWS[1]), crashed)
    assert table(["--merge", "--out", str(tmp_path)]) == 0, capfd.readouterr()
    merged = read_merged([tmp_path / "results.json"])
    assert [result.row for result in merged.results] == ROWS[:3]
    assert ROWS[1].id.split(".")[-1] in (tmp_path / "results.md").read_text("utf-8")
    assert f"since INVALID: {ROWS[2].id}" in capfd.readouterr().out
    (baseline,) = tmp_path.glob("baselines/*/baseline.json")
    recorded = json.loads(baseline.read_text(encoding="utf-8"))["rows"]
    assert [row["id"] for row in recorded] == [ROWS[0].id, ROWS[1].id]


def test_a_piece_that_ran_out_of_time_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a run that measures one row at a time in the place of the real one."""
    late = unmeasured(Status.NOT_RUN, "time-budget: 1 of 9 s are left", ROWS[1])
    first = write(tmp_path / "first", measured(ROWS[0]), late)
    second = write(tmp_path / "second", measured(ROWS[0]), measured(ROWS[1]))
    asked: list[tuple[str, ...]] = []

    def command(*words: str) -> list[str]:
        asked.append(words)
        source = second if "--resume" in words else first
        target = words[words.index("--results") + 1]
        copy = "import shutil, sys; shutil.copy(*sys.argv[1:])"
        return [sys.executable, "-c", copy, str(source), target]

    monkeypatch.setattr(cuda_table, "llama_perf", command)
    words = ["--rehearse", "--shard", "1/1", "--out", str(tmp_path / "out")]
    assert table(words) == 1
    assert "not complete: run the same command again" in capfd.readouterr().out
    assert table(words) == 0
    assert ["--resume" in command for command in asked] == [False, True]
    assert all("--shard" in command and "--time-budget" in command for command in asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "3/2"], "shard: '3/2' is not allowed; allowed: I/N"),
        (["--wheels", "absent"], "wheels: 'absent' is no folder"),
        (["--merge", "--out", "absent"], "out: 'absent' has no pieces to merge"),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert table(words) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"cuda_table: error: {message}")
    assert captured.err.count("\n") == 1


def test_a_row_in_two_files_keeps_its_own_verdict(tmp_path: Path) -> None:
    plain, compared = measured(tok_s=90.0), measured(tok_s=60.0)
    slower = replace(not_compared(compared), verdict=Verdict.SLOWER)
    paths = [
        write(tmp_path / "plain", plain),
        write(tmp_path / "compared", compared, comparisons=(slower,)),
    ]
    assert read_merged(paths).judged == [(plain, None)]
    assert read_merged(paths[::-1]).judged == [(compared, slower)]
