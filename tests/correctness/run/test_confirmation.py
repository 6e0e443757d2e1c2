"""A row that looks slower: pairs with its baseline's commit, or fresh processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import UserError
from llama_perf.gate.blocks import TARGET_LOSS
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.gate.verdict import compare
from llama_perf.results.measurement import OperatorTime, StepWork
from llama_perf.results.run import Comparison, Environment, RowResult, Status, Verdict
from llama_perf.run import confirmation
from llama_perf.run.options import RunRequest
from llama_perf.run.worker_protocol import WorkerResult
from tests.correctness.support.made_up_workers import BASE, Machine
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    ENVIRONMENT,
    baseline_of_processes,
    measured,
    unmeasured,
)

COMMIT = str(ENVIRONMENT.commit)
SLOW = measured(tok_s=50.0)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The revisions that git has; their files are the base's."""
    names = [COMMIT, "main"]

    def resolve(revision: str) -> str:
        if revision not in names:
            raise UserError("no such commit")
        return revision

    @contextmanager
    def checked_out(commit: str) -> Iterator[Path]:
        assert commit in names
        yield BASE

    monkeypatch.setattr(confirmation, "resolve", resolve)
    monkeypatch.setattr(confirmation, "checked_out", checked_out)
    return names


def ran(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fresh processes that are all as slow; the speeds of those that ran."""
    speeds: list[float] = []

    def run(*_: object, **__: object) -> WorkerResult:
        speeds.append(50.0)
        return WorkerResult(result=SLOW, environment=ENVIRONMENT)

    monkeypatch.setattr("llama_perf.run.worker.run_in_process", run)
    return speeds


def decided(
    result: RowResult = SLOW,
    *,
    stored: Environment = ENVIRONMENT,
    processes: Sequence[float] = ALIKE,
    before: Verdict = Verdict.UNDECIDED,
) -> Comparison:
    """The verdict after the confirmation; the device's bandwidth is as stored.

    `before` is the verdict before it.
    """
    baseline = baseline_of_processes({CPU_ROW: processes}, environment=stored)
    by_pairs = confirmation.rows_by_pairs(baseline, ENVIRONMENT)
    speeds = SpeedBaseline(baseline, ENVIRONMENT, by_pairs=by_pairs)
    first = compare(result, speeds)
    assert (first.verdict, first.suspicious) == (before, True)
    confirmed = confirmation.confirm(
        CPU_ROW,
        first,
        speeds,
        unquantized=None,
        options=RunRequest(),
        progress=lambda _: None,
    )
    return compare(result, speeds, confirmation=confirmed)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("factor", "expected", "words"),
    [
        (2.0, Verdict.SLOWER, "; -50.0% (95 %: -51.4% to -48.6%, 4 pairs) against the"),
        (
            1.0,
            Verdict.SAME,
            "; not confirmed: +0.0% (95 %: -2.8% to +2.9%, 4 pairs) ag",
        ),
    ],
)
def test_pairs_of_the_baselines_commit_decide(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    expected: Verdict,
    words: str,
) -> None:
    speeds = ran(monkeypatch)
    machine.ns = lambda side, _: round(10**8 * (factor if side == "head" else 1))
    comparison = decided()
    assert comparison.verdict is expected
    assert words in comparison.reason
    assert f"the baseline's commit {COMMIT} in pairs, resident" in comparison.reason
    assert comparison.minimum_detectable is not None
    assert not speeds


NOISY = (80.0, 90.0, 100.0, 110.0, 125.0)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.1, Verdict.SLOWER), (1.0, Verdict.SAME), (0.8, Verdict.FASTER)],
)
@pytest.mark.parametrize("tok_s", [90.0, 110.0])
def test_pairs_decide_where_the_baselines_noise_hides_a_loss(
    machine: Machine, factor: float, expected: Verdict, tok_s: float
) -> None:
    machine.ns = lambda side, _: round(10**8 * (factor if side == "head" else 1))
    result = measured(tok_s=tok_s)
    comparison = decided(result, processes=NOISY, before=Verdict.SAME)
    assert comparison.verdict is expected
    says_why = "; noise may hide a loss, so pairs ran: " in comparison.reason
    assert says_why is (expected is not Verdict.SLOWER)
    assert comparison.minimum_detectable == pytest.approx(0.045, abs=0.001)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("processes", "tok_s", "commit"),
    [
        # Nobody can run pairs.
        (NOISY, 90.0, "ffff"),
        # A loss of 5 % does not look like this.
        (NOISY, 150.0, COMMIT),
        (ALIKE, 99.5, COMMIT),
    ],
)
def test_other_rows_need_no_pairs(
    processes: Sequence[float], tok_s: float, commit: str
) -> None:
    stored = other(commit=commit)
    baseline = baseline_of_processes({CPU_ROW: processes}, environment=stored)
    by_pairs = confirmation.rows_by_pairs(baseline, ENVIRONMENT)
    assert by_pairs == ([CPU_ROW.id] if commit == COMMIT else [])
    speeds = SpeedBaseline(baseline, ENVIRONMENT, by_pairs=by_pairs)
    comparison = compare(measured(tok_s=tok_s), speeds)
    assert (comparison.verdict, comparison.suspicious) == (Verdict.SAME, False)
    assert comparison.minimum_detectable is not None
    hides_more = comparison.minimum_detectable > TARGET_LOSS
    assert hides_more is (not by_pairs)


@pytest.mark.usefixtures("known")
def test_the_operators_that_grew_are_those_of_the_pair(machine: Machine) -> None:
    machine.ns = lambda side, _: 2 * 10**8 if side == "head" else 10**8

    def step(ms: float) -> StepWork:
        return StepWork(
            calls=1, ms=ms, operators=(OperatorTime(name="mm", calls=1, ms=ms),)
        )

    machine.changes["step"] = step(3.0)
    machine.of_side["head"] = {"step": step(8.0)}
    comparison = decided()
    assert comparison.why == ("grew: mm, 3.00 -> 8.00 ms a step",)


@pytest.mark.usefixtures("known")
def test_noise_leaves_the_row_undecided(machine: Machine) -> None:
    def ns(side: str, number: int) -> int:
        factor = (1.6, 0.7)[(number - 1) // 20 % 2] if side == "head" else 1.0
        return round(10**8 * factor)

    machine.ns = ns
    comparison = decided()
    assert (comparison.verdict, comparison.failed) == (Verdict.UNDECIDED, True)
    assert "; undecided: " in comparison.reason


def other(**changes: Any) -> Environment:
    return replace(ENVIRONMENT, **changes)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (
            other(torch="2.11.0"),
            "no pairs, since the environment changed: torch: 2.11.0 -> 2.13.0"
            " (llama-perf compare --base-python judges that)",
        ),
        (other(commit=None), "no pairs, since the baseline names no commit"),
        (other(commit="ffff"), "no pairs, since git has no commit ffff here"),
    ],
)
@pytest.mark.usefixtures("known")
def test_fresh_processes_decide_where_pairs_cannot(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, stored: Environment, why: str
) -> None:
    speeds = ran(monkeypatch)
    comparison = decided(stored=stored)
    assert comparison.verdict is Verdict.SLOWER
    assert "confirmed by 5 fresh processes" in comparison.reason
    assert comparison.reason.endswith(f"; {why}")
    assert len(speeds) == 5
    assert not machine.asked


@pytest.mark.usefixtures("known")
def test_fresh_processes_decide_where_the_commit_does_not_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = ran(monkeypatch)
    machine.ends["base", "run"] = unmeasured(Status.INVALID, "its process ended")
    comparison = decided()
    assert comparison.verdict is Verdict.SLOWER
    why = f"no pairs with the baseline's commit {COMMIT}: base: its process ended"
    assert comparison.reason.endswith(why)
    assert len(speeds) == 5


def blamed(verdict: Verdict, reason: str) -> Comparison:
    """The verdict on a failed row, after pairs with main."""
    failed = Comparison(id=CPU_ROW.id, verdict=verdict, reason=reason, failed=True)
    options = RunRequest(base="main")
    return confirmation.blame(CPU_ROW, failed, options=options, progress=lambda _: None)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("factor", "before", "expected", "failed"),
    [
        (1.0, Verdict.SLOWER, Verdict.ALREADY_SLOWER, False),
        (2.0, Verdict.SLOWER, Verdict.SLOWER, True),
        (1.0, Verdict.LARGER, Verdict.ALREADY_LARGER, False),
        (2.0, Verdict.LARGER, Verdict.LARGER, True),
    ],
)
def test_a_change_is_not_blamed_for_what_was_worse_before(
    machine: Machine, factor: float, before: Verdict, expected: Verdict, failed: bool
) -> None:
    machine.ns = lambda side, _: round(10**8 * (factor if side == "head" else 1))
    comparison = blamed(before, "it lost")
    assert (comparison.verdict, comparison.failed) == (expected, failed)
    assert "against main in pairs" in comparison.reason
    assert "it lost" in comparison.reason
    worse = before.value.lower()
    already = f"main is {worse} than the baseline already, and this is no {worse} than"
    assert comparison.reason.startswith(already) is not failed


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("before", [Verdict.SLOWER, Verdict.LARGER])
def test_what_a_change_makes_larger_fails_though_the_row_was_worse_before(
    machine: Machine, before: Verdict
) -> None:
    def work(calls: float, waits: float) -> dict[str, StepWork]:
        return {"step": StepWork(calls=calls, ms=1, operators=(), host_waits=waits)}

    machine.of_side = {"base": work(114, 1), "head": work(129, 4)}
    against_baseline = "calls a step 106 -> 129; host synchronisations a token 0 -> 4"
    comparison = blamed(before, against_baseline)
    assert (comparison.verdict, comparison.failed) == (Verdict.LARGER, True)
    assert comparison.reason.startswith(
        "against main: calls a step 114 -> 129 (+13.2%, limit 1%);"
        " host synchronisations a token 1.0 -> 4.0;"
    )
    already = "; main is slower than the baseline already, and this is no slower than"
    assert (already in comparison.reason) is (before is Verdict.SLOWER)
    assert comparison.reason.endswith(f"; {against_baseline}")


@pytest.mark.usefixtures("known", "machine")
def test_a_larger_row_says_how_its_speed_was_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "llama_perf.run.worker.run_in_process",
        lambda *_, **__: WorkerResult(result=measured(), environment=None),
    )
    larger = measured(tok_s=50.0, model_size_bytes=900_000_000)
    pairs = decided(larger, before=Verdict.LARGER)
    fresh = decided(larger, stored=other(commit="ffff"), before=Verdict.LARGER)
    assert (pairs.verdict, fresh.verdict) == (Verdict.LARGER, Verdict.LARGER)
    assert "; not confirmed: +0.0% (95 %: " in pairs.reason
    assert "; not confirmed by 5 fresh processes: " in fresh.reason
    assert fresh.reason.endswith("; no pairs, since git has no commit ffff here")
