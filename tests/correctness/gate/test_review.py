"""`llama-perf baseline diff` and `check`, for a reviewer of a baseline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.gate.review import differences, problems
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.revision import file_at, resolve
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
    measured,
)

STORED = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE})
FIRST, SECOND = STORED.rows


def with_first(**changes: Any) -> Baseline:
    return replace(STORED, rows=(replace(FIRST, **changes), SECOND))


def test_rows_that_were_added_removed_and_changed_are_listed() -> None:
    assert differences(STORED, STORED) == []
    third = replace(CPU_ROW, max_new_tokens=7)
    faster = [rate * 1.1 for rate in ALIKE]
    new = baseline_of_processes({CPU_ROW: faster, third: ALIKE})
    new = replace(new, environment=replace(ENVIRONMENT, torch="3.0.0", commit="f"))
    lines = differences(STORED, new)
    assert lines[:2] == [f"added: {third.id}", f"removed: {OTHER.id}"]
    row = next(line for line in lines if line.startswith(CPU_ROW.id))
    assert row.split()[1:5] == ["100.00", "->", "110.00", "+10.0%"]
    assert lines[-1] == "environment: torch: 2.13.0 -> 3.0.0; commit: 0123456789ab -> f"
    lines = differences(STORED, with_first(fingerprint="other"))
    assert lines == [f"another row under its id: {CPU_ROW.id}"]


UNEVEN = baseline_of_processes({CPU_ROW: (50, 100, 200), OTHER: (40, 90, 200)})
SLOWED = baseline_of_processes({CPU_ROW: (0.5,) * 3}, "injected_slowdown")
ELSEWHERE = with_first(environment=replace(ENVIRONMENT, torch="1.0"))
BOTH = (CPU_ROW, OTHER)


@pytest.mark.parametrize(
    ("changed", "known", "message"),
    [
        (STORED, BOTH, None),
        (STORED, (OTHER,), "in no set, so nothing is compared with it"),
        (with_first(fingerprint="old"), BOTH, "the row changed since: record it again"),
        (
            baseline_of(measured()),
            BOTH,
            "1 of the 3 processes from which noise is estimated",
        ),
        (UNEVEN, BOTH, "record it on a quieter machine"),
        (SLOWED, BOTH, "measured with an injected slowdown"),
        (ELSEWHERE, BOTH, "of another environment: torch: 1.0 -> 2.13.0"),
    ],
)
def test_each_problem_is_listed(
    changed: Baseline, known: tuple[RowSpec, ...], message: str | None
) -> None:
    lines = list(problems(changed, {row.id: row for row in known}))
    if message is None:
        assert lines == []
    else:
        assert lines[0].startswith(f"{CPU_ROW.id}: ")
        assert lines[0].endswith(message)


def write(folder: Path, baseline: Baseline) -> Path:
    path = baselines.path_of(folder, "cpu-some-2c")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(baseline), encoding="utf-8")
    return path


def test_diff_with_a_file_and_with_an_unknown_revision(
    tmp_path: Path, cli: CommandLine
) -> None:
    old = write(tmp_path / "old", STORED)
    write(tmp_path / "new", STORED)
    diff = ["baseline", "diff", "--baselines", str(tmp_path / "new")]
    assert cli(*diff, str(old))[0] == "cpu-some-2c:\n  the same\n"
    message = cli.refusal(*diff, "no-such-branch")
    assert message.startswith("diff: 'no-such-branch' names no commit of ")


def test_diff_reads_the_revision_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    path = write(tmp_path / "baselines", STORED)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = resolve("HEAD", root=tmp_path)
    assert file_at(commit, path) == to_json(STORED)
    assert file_at(commit, path.parent / "none.json") is None


def test_check_fails_for_what_is_damaged_and_what_is_stale(
    tmp_path: Path, cli: CommandLine
) -> None:
    check = ["baseline", "check", "--baselines", str(tmp_path)]
    write(tmp_path, STORED)
    damaged = baselines.path_of(tmp_path, "damaged")
    damaged.parent.mkdir()
    damaged.write_text("{", encoding="utf-8")
    out, _ = cli(*check, code=1)
    assert f"cpu-some-2c: 2 problems\n  {CPU_ROW.id}: in no set" in out
    assert f"damaged: 1 problems\n  {damaged}: Invalid JSON" in out
    # A sound one, and the one that comes along.
    damaged.unlink()
    write(tmp_path, baseline_of_processes({selection.load_set("cpu")[0]: ALIKE}))
    assert cli(*check)[0] == "cpu-some-2c: sound\n"
    cli("baseline", "check", "--device", baselines.REFERENCE_KEY)
