"""`llama-perf baseline diff` and `check`, for a reviewer of a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.cli.main import main
from llama_perf.gate import baselines
from llama_perf.gate.review import differences, problems
from llama_perf.results.baseline import Baseline
from llama_perf.rows import selection as row_sets
from llama_perf.rows.spec import RowSpec
from llama_perf.run.revision import file_at, resolve
from llama_perf.strict_json import to_json
from tests.correctness.support.git_commands import git
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    baseline_of,
    baseline_of_processes,
    measured,
)

OTHER = replace(CPU_ROW, compile=True)
ALIKE = (99.0, 100.0, 101.0, 99.5, 100.5)
STORED = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE})


def known(*rows: Baseline) -> dict[str, RowSpec]:
    return {row.id: row.row for baseline in rows for row in baseline.rows}


def test_the_same_baseline_has_no_difference() -> None:
    assert differences(STORED, STORED) == []


def test_rows_that_were_added_removed_and_changed_are_listed() -> None:
    third = replace(CPU_ROW, max_new_tokens=7)
    faster = [rate * 1.1 for rate in ALIKE]
    new = baseline_of_processes({CPU_ROW: faster, third: ALIKE})
    new = replace(new, environment=replace(ENVIRONMENT, torch="3.0.0", commit="f"))
    lines = differences(STORED, new)
    assert lines[:2] == [f"added: {third.id}", f"removed: {OTHER.id}"]
    row = next(line for line in lines if line.startswith(CPU_ROW.id))
    assert row.split()[1:5] == ["100.00", "->", "110.00", "+10.0%"]
    assert lines[-1] == "environment: torch: 2.13.0 -> 3.0.0; commit: 0123456789ab -> f"


def test_a_row_that_changed_under_its_id_is_listed() -> None:
    rows = [replace(row, fingerprint="other") for row in STORED.rows]
    lines = differences(STORED, replace(STORED, rows=tuple(rows)))
    assert lines == [f"another row under its id: {row.id}" for row in STORED.rows]


def test_a_sound_baseline_has_no_problem() -> None:
    assert list(problems(STORED, known(STORED))) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (baseline_of(measured()), "1 of the 3 processes from which noise is estimated"),
        (
            baseline_of_processes(
                {CPU_ROW: (50.0, 100.0, 200.0), OTHER: (40, 90, 200)}
            ),
            "record it on a quieter machine",
        ),
        (
            baseline_of(measured(injected_slowdown=0.5)),
            "measured with an injected slowdown",
        ),
        (
            replace(
                STORED,
                rows=tuple(
                    replace(row, environment=replace(ENVIRONMENT, torch="1.0"))
                    for row in STORED.rows
                ),
            ),
            "of another environment: torch: 1.0 -> 2.13.0",
        ),
    ],
)
def test_each_problem_is_listed(changed: Baseline, message: str) -> None:
    lines = list(problems(changed, known(changed)))
    assert any(line.startswith(f"{CPU_ROW.id}: ") and message in line for line in lines)


def test_stale_and_changed_rows_are_problems() -> None:
    changed = {CPU_ROW.id: OTHER}
    lines = list(problems(STORED, changed))
    assert lines == [
        f"{CPU_ROW.id}: the row changed since: record it again",
        f"{OTHER.id}: in no set, so nothing is compared with it",
    ]


def write(folder: Path, baseline: Baseline) -> Path:
    path = baselines.path_of(folder, "cpu-some-2c")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(baseline), encoding="utf-8")
    return path


def words(action: str, folder: Path, *more: str) -> Sequence[str]:
    return ["baseline", action, *more, "--baselines", str(folder)]


def test_diff_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.json"
    old.write_text(to_json(STORED), encoding="utf-8")
    write(tmp_path / "new", STORED)
    assert main(words("diff", tmp_path / "new", str(old))) == 0
    assert capsys.readouterr().out == "cpu-some-2c:\n  the same\n"


def test_diff_with_an_unknown_revision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, STORED)
    assert main(words("diff", tmp_path, "no-such-branch")) == 2
    assert "diff: 'no-such-branch' names no commit of " in capsys.readouterr().err


def test_diff_reads_the_revision_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    path = write(tmp_path / "baselines", STORED)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = resolve("HEAD", root=tmp_path)
    assert file_at(commit, path) == to_json(STORED)
    assert file_at(commit, path.parent / "none.json") is None


def test_check_fails_for_what_is_damaged_and_what_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, STORED)
    damaged = baselines.path_of(tmp_path, "damaged")
    damaged.parent.mkdir()
    damaged.write_text("{", encoding="utf-8")
    assert main(words("check", tmp_path)) == 1
    out = capsys.readouterr().out
    assert f"cpu-some-2c: 2 problems\n  {CPU_ROW.id}: in no set" in out
    assert f"damaged: 1 problems\n  {damaged}: Invalid JSON" in out


def test_check_passes_for_a_sound_one_and_for_those_that_come_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_sets.load_set("cpu")[0]
    write(tmp_path, baseline_of_processes({row: ALIKE}))
    assert main(words("check", tmp_path)) == 0
    assert capsys.readouterr().out == "cpu-some-2c: sound\n"
    assert main(["baseline", "check", "--device", baselines.REFERENCE_KEY]) == 0
