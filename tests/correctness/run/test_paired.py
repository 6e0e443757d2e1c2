"""Two revisions in pairs: order, verdicts, how often they err, the command."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.cli.main import main
from llama_perf.errors import UserError
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import paired
from llama_perf.run.paired import Pairs, Side, compare_pairs, measure_pairs
from llama_perf.run.request import RunOptions, Slowdown
from llama_perf.run.revision import checked_out, resolve
from llama_perf.run.worker import WorkerResult
from llama_perf.strict_json import from_json
from tests.correctness.support.git_commands import git
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[3]
OTHER = replace(CPU_ROW, compile=True)
BASE, HEAD = Side(package=Path("base")), Side()


def pairs_of(
    base: Sequence[float], head: Sequence[float], row: RowSpec = CPU_ROW
) -> Pairs:
    sides = {"base": base, "head": head}
    return Pairs(
        row=row,
        results={
            side: [measured(row, tok_s=tok_s) for tok_s in rates]
            for side, rates in sides.items()
        },
    )


def verdict(*measured_pairs: Pairs) -> Comparison:
    return compare_pairs(measured_pairs)[0][1]


def test_a_loss_in_every_pair_is_slower_and_its_gain_faster() -> None:
    fast, slow = [100.0, 101.0, 99.0, 100.5, 99.5], [95.0, 96.1, 94.2, 95.3, 94.4]
    slower = verdict(pairs_of(fast, slow))
    assert slower.verdict is Verdict.SLOWER
    assert slower.failed
    assert "tok/s 100.00 -> 95.00 (-5.0%, limit 1.0%)" in slower.reason
    assert slower.reason.endswith("; 5 pairs, head slower in 5")
    faster = verdict(pairs_of(slow, fast))
    assert faster.verdict is Verdict.FASTER
    assert not faster.failed


def test_what_both_of_a_pair_have_decides_nothing() -> None:
    minutes = [100.0, 60.0, 80.0, 130.0, 90.0]
    scatter = [1.001, 0.999, 1.0, 1.002, 0.998]
    same = [tok_s * by for tok_s, by in zip(minutes, scatter, strict=True)]
    assert verdict(pairs_of(minutes, same)).verdict is Verdict.SAME
    slower = verdict(pairs_of(minutes, [tok_s * 0.97 for tok_s in same]))
    assert slower.verdict is Verdict.SLOWER


def test_a_loss_of_less_than_one_percent_is_none() -> None:
    base = [100.0, 100.001, 99.999, 100.0, 100.0]
    comparison = verdict(pairs_of(base, [tok_s * 0.995 for tok_s in base]))
    assert comparison.verdict is Verdict.SAME


def test_a_larger_model_fails() -> None:
    pairs = pairs_of([100.0] * 3, [100.0] * 3)
    pairs.results["head"] = [
        measured(model_size_bytes=10**9) for _ in pairs.results["head"]
    ]
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
def test_a_row_that_a_side_did_not_measure(
    base: Status, head: Status, expected: Verdict, failed: bool
) -> None:
    def result(status: Status) -> RowResult:
        return measured() if status is Status.MEASURED else unmeasured(status, "why")

    pairs = Pairs(row=CPU_ROW, results={"base": [result(base)], "head": [result(head)]})
    shown, comparison = compare_pairs([pairs])[0]
    assert comparison.verdict is expected
    assert comparison.failed is failed
    side = "base" if base is not Status.MEASURED else "head"
    assert comparison.reason.startswith(f"{side}: ")
    assert shown.measurement is None
    if expected is Verdict.NO_BASELINE:
        assert not compare_pairs([pairs], missing_fails=False)[0][1].failed


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """Have a function stand for every process; the (side, row) that were started."""

    def measure(
        result: Callable[[str, RowSpec], RowResult],
        *rows: RowSpec,
        options: RunOptions | None = None,
    ) -> list[tuple[str, str]]:
        started: list[tuple[str, str]] = []

        def stand_in(
            side: Side, row: RowSpec, options_there: RunOptions, devices: frozenset[str]
        ) -> WorkerResult:
            name = "base" if side is BASE else "head"
            assert devices == {row.device}
            assert bool(options_there.slowdowns) == (
                options is not None and name == "head"
            )
            started.append((name, row.id))
            return WorkerResult(result=result(name, row), environment=ENVIRONMENT)

        monkeypatch.setattr(Side, "run", stand_in)
        measure_pairs(
            rows, {"base": BASE, "head": HEAD}, pairs=3, options=options or RunOptions()
        )
        return started

    return measure


def test_rows_and_sides_take_turns(run: Callable[..., list[tuple[str, str]]]) -> None:
    a, b = CPU_ROW, OTHER
    order: list[tuple[str, str]] = []
    for first, second in (("base", "head"), ("head", "base"), ("base", "head")):
        order += [(side, row.id) for row in (a, b) for side in (first, second)]
    assert run(lambda _side, row: measured(row), a, b) == order


def test_a_row_that_cannot_run_is_tried_once_on_each_side(
    run: Callable[..., list[tuple[str, str]]],
) -> None:
    started = run(
        lambda side, row: (
            unmeasured(Status.NOT_RUN, "why", row) if side == "base" else measured(row)
        ),
        CPU_ROW,
    )
    assert started == [("base", CPU_ROW.id), ("head", CPU_ROW.id)]


def test_a_slowdown_is_injected_only_into_the_head(
    run: Callable[..., list[tuple[str, str]]],
) -> None:
    slowed = RunOptions(slowdowns=(Slowdown(glob="*", share=0.5),))
    assert len(run(lambda _side, row: measured(row), CPU_ROW, options=slowed)) == 6


def simulated(loss: float, deviation: float, draw: random.Random) -> list[Comparison]:
    rows = [replace(CPU_ROW, max_new_tokens=number) for number in range(1, 21)]
    measured_pairs = []
    for row in rows:
        sides = []
        for factor in (1.0, 1 - loss):
            sides.append(
                [100 * factor * math.exp(draw.gauss(0, deviation)) for _ in range(5)]
            )
        measured_pairs.append(pairs_of(sides[0], sides[1], row))
    return [comparison for _, comparison in compare_pairs(measured_pairs)]


def test_simulated_pairs_raise_no_false_alarm_and_find_what_they_should() -> None:
    draw = random.Random(0)
    for deviation, loss in ((0.004, 0.025), (0.01, 0.05), (0.02, 0.10)):
        alarms = sum(
            any(row.failed for row in simulated(0.0, deviation, draw))
            for _ in range(100)
        )
        assert alarms == 0
        failed = [
            row.failed for _ in range(5) for row in simulated(loss, deviation, draw)
        ]
        assert sum(failed) >= 0.9 * len(failed), deviation


def test_a_revision_is_checked_out_and_gone_afterwards(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()

    git(repository, "init", "-q")
    for number in (1, 2):
        (repository / "file").write_text(str(number), encoding="utf-8")
        git(repository, "add", "file")
        git(repository, "commit", "-q", "-m", str(number))
    commit = resolve("HEAD~1", root=repository)
    with checked_out(commit, root=repository) as folder:
        assert (folder / "file").read_text(encoding="utf-8") == "1"
    assert not folder.exists()
    assert git(repository, "worktree", "list").count("\n") == 1
    for wrong in ("no-such-branch", "--all", ""):
        with pytest.raises(UserError, match=f"base: '{wrong}' names no commit of"):
            resolve(wrong, root=repository)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "compare: name a base: --base REV, --base-python PATH or both"),
        (["--base", "no-such-branch"], "base: 'no-such-branch' names no commit of "),
        (["--base", "HEAD", "--pairs", "2"], "pairs: 2 is not allowed; allowed: 3 to"),
        (["--base-python", "/nowhere"], "base-python: '/nowhere' is not allowed; name"),
        (["--base", "HEAD", "--json", "/no/x"], "results: '/no/x' is not allowed"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--set", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"llama-perf: error: {message}")
    assert error.count("\n") == 1


def test_this_environment_compared_with_itself(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The shortest that decides anything; what it decides on one core is not asked.
    monkeypatch.setattr(paired, "MIN_PAIRS", 2)
    results = project.path / "pairs.json"
    code = main(
        [
            *("compare", "--base-python", sys.executable, "--pairs", "2"),
            *("--rows", str(project.path / "rows.toml")),
            *("--checkpoints", str(project.path / "checkpoints")),
            *("--row", "*none*", "--row", "*fp6*", "--results", str(results)),
        ]
    )
    assert code in (0, 1)
    output = capsys.readouterr()
    assert f"[pair 2/2] {PLAIN}, base: " in output.err
    assert f"baseline: {sys.executable}, in 2 pairs of processes" in output.out
    report = from_json(Report, results.read_bytes(), source="pairs")
    assert [result.id for result in report.results] == [PLAIN, FP6]
    assert report.comparisons[0].reason.endswith(("slower in 0", "slower in 1", "in 2"))
    assert report.comparisons[1].verdict is Verdict.NOT_RUN
    assert INT8 not in json.dumps(output.err)
