"""Two revisions in pairs: order, verdicts, how often they err, the command."""

import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.errors import UserError
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import paired, worker
from llama_perf.run.options import RunRequest
from llama_perf.run.paired import Pairs, compare_pairs, measure_pairs
from llama_perf.run.revision import checked_out, resolve
from llama_perf.run.worker import WorkerResult
from tests.correctness.support.git_commands import git
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]
OTHER = replace(CPU_ROW, compile=True)


def pairs_of(
    base: Sequence[float], head: Sequence[float], row: RowSpec = CPU_ROW
) -> Pairs:
    sides = {"base": base, "head": head}
    results = {
        side: [measured(row, tok_s=tok_s) for tok_s in rates]
        for side, rates in sides.items()
    }
    return Pairs(row=row, results=results)


def verdict(pairs: Pairs) -> Comparison:
    return compare_pairs([pairs])[0][1]


FAST, SLOW = [100.0, 101.0, 99.0, 100.5, 99.5], [95.0, 96.1, 94.2, 95.3, 94.4]
MINUTES = [100.0, 60.0, 80.0, 130.0, 90.0]
# Scattered by a tenth of a percent around what the base had in the same minute.
SAME = [100.1, 59.94, 80.0, 130.26, 89.82]
STEADY = [100.0, 100.001, 99.999, 100.0, 100.0]


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        (FAST, SLOW, Verdict.SLOWER),
        (SLOW, FAST, Verdict.FASTER),
        (MINUTES, SAME, Verdict.SAME),
        (MINUTES, [tok_s * 0.97 for tok_s in SAME], Verdict.SLOWER),
        # A loss of less than one percent is none.
        (STEADY, [tok_s * 0.995 for tok_s in STEADY], Verdict.SAME),
    ],
)
def test_losses_decide(base: list[float], head: list[float], expected: Verdict) -> None:
    comparison = verdict(pairs_of(base, head))
    assert comparison.verdict is expected
    assert comparison.failed is (expected is Verdict.SLOWER)
    if head is SLOW:
        assert "tok/s 100.00 -> 95.00 (-5.0%, limit 1.0%)" in comparison.reason
        assert comparison.reason.endswith("; 5 pairs, head slower in 5")


def test_a_larger_model_fails() -> None:
    pairs = pairs_of([100.0] * 3, [100.0] * 3)
    pairs.results["head"] = [measured(model_size_bytes=10**9)] * 3
    assert verdict(pairs).verdict is Verdict.LARGER


@pytest.mark.parametrize(
    ("base", "head", "expected", "failed"),
    [
        (Status.NOT_RUN, Status.MEASURED, Verdict.NO_BASELINE, True),
        (Status.MEASURED, Status.NOT_RUN, Verdict.NOT_RUN, True),
        (Status.NOT_RUN, Status.NOT_RUN, Verdict.NOT_RUN, False),
        (Status.INVALID, Status.MEASURED, Verdict.INVALID, True),
        (Status.MEASURED, Status.INVALID, Verdict.INVALID, True),
    ],
)
def test_a_missing_row(
    base: Status, head: Status, expected: Verdict, failed: bool
) -> None:
    results = {
        side: [measured() if status is Status.MEASURED else unmeasured(status, "why")]
        for side, status in (("base", base), ("head", head))
    }
    pairs = Pairs(row=CPU_ROW, results=results)
    shown, comparison = compare_pairs([pairs])[0]
    assert (comparison.verdict, comparison.failed) == (expected, failed)
    side = "base" if base is not Status.MEASURED else "head"
    assert comparison.reason == f"{side}: why"
    assert shown.measurement is None
    if expected is Verdict.NO_BASELINE:
        assert not compare_pairs([pairs], missing_fails=False)[0][1].failed


Started = list[tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Started]:
    """Have a function stand for every process; the (side, row) that were started."""

    def measure(
        result: Callable[[str, RowSpec], RowResult],
        *rows: RowSpec,
        slowdowns: tuple[tuple[str, float], ...] = (),
    ) -> Started:
        started: Started = []

        def ran_by(
            row: RowSpec, *, options: RunRequest, **rest: object
        ) -> WorkerResult:
            name = "base" if rest.get("package") else "head"
            assert options.inject_slowdown == (slowdowns if name == "head" else ())
            started.append((name, row.id))
            return WorkerResult(result=result(name, row), environment=ENVIRONMENT)

        monkeypatch.setattr(worker, "run_in_process", ran_by)
        measure_pairs(
            rows,
            package=Path("base"),
            python=None,
            pairs=3,
            options=RunRequest(inject_slowdown=slowdowns),
            progress=print,
        )
        return started

    return measure


def test_rows_and_sides_take_turns(run: Callable[..., Started]) -> None:
    order: Started = []
    for sides in (("base", "head"), ("head", "base"), ("base", "head")):
        order += [(side, row.id) for row in (CPU_ROW, OTHER) for side in sides]
    # It asserts that a slowdown is injected only into the head.
    slowed = (("*", 0.5),)
    assert run(lambda _, row: measured(row), CPU_ROW, OTHER, slowdowns=slowed) == order


def test_a_row_that_cannot_run_is_tried_once(run: Callable[..., Started]) -> None:
    refused = unmeasured(Status.NOT_RUN, "why")
    started = run(lambda side, _: refused if side == "base" else measured(), CPU_ROW)
    assert started == [("base", CPU_ROW.id), ("head", CPU_ROW.id)]


def simulated(loss: float, deviation: float, draw: random.Random) -> list[bool]:
    """Which of twenty rows fail, whose heads lose so much."""

    def rates(factor: float) -> list[float]:
        return [100 * factor * math.exp(draw.gauss(0, deviation)) for _ in range(5)]

    rows = [replace(CPU_ROW, max_new_tokens=number) for number in range(1, 21)]
    pairs = [pairs_of(rates(1.0), rates(1 - loss), row) for row in rows]
    return [comparison.failed for _, comparison in compare_pairs(pairs)]


@pytest.mark.parametrize(
    ("deviation", "loss"), [(0.004, 0.025), (0.01, 0.05), (0.02, 0.10)]
)
def test_simulated_pairs_have_few_errors(deviation: float, loss: float) -> None:
    draw = random.Random(0)
    assert not any(any(simulated(0.0, deviation, draw)) for _ in range(100))
    failed = [fails for _ in range(5) for fails in simulated(loss, deviation, draw)]
    assert sum(failed) >= 0.9 * len(failed)


def test_a_revision_is_checked_out_and_gone_afterwards(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for number in (1, 2):
        (tmp_path / "file").write_text(str(number), encoding="utf-8")
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "-q", "-m", str(number))
    commit = resolve("HEAD~1", root=tmp_path)
    with checked_out(commit, root=tmp_path) as folder:
        assert (folder / "file").read_text(encoding="utf-8") == "1"
    assert not folder.exists()
    assert git(tmp_path, "worktree", "list").count("\n") == 1
    for wrong in ("no-such-branch", "--all", ""):
        with pytest.raises(UserError, match=f"base: '{wrong}' names no commit of"):
            resolve(wrong, root=tmp_path)


def test_this_environment_compared_with_itself(project: Project) -> None:
    # The shortest that decides anything; what it decides on one core is not asked.
    project.patch.setattr(paired, "MIN_PAIRS", 2)
    project.patch.setattr(worker, "run_in_process", project.real_process)
    project.results.parent.mkdir()
    words = ["compare", "--base-python", sys.executable, "--pairs", "2"]
    words += ["--rows", str(project.rows), "--row", "*none*", "--row", "*fp6*"]
    words += ["--checkpoints", str(project.path / "checkpoints")]
    words += ["--results", str(project.results)]
    out, err = project.cli(*words, code=None)
    assert f"[pair 2/2] {PLAIN}, base: " in err
    assert INT8 not in err
    assert f"baseline: {sys.executable}, in 2 pairs of processes" in out
    same, not_run = project.report().comparisons
    assert (same.id, not_run.id) == (PLAIN, FP6)
    assert same.reason.endswith(("slower in 0", "slower in 1", "in 2"))
    assert not_run.verdict is Verdict.NOT_RUN
