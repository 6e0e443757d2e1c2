"""Pairs of resident processes: their order, their ways, what a broken side leaves."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.devices.device import device_of
from llama_perf.gate.pairs import SIDES, PairsGate
from llama_perf.results.run import Report, Status, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import paired
from llama_perf.run.options import RunRequest
from llama_perf.run.paired import PairedProcesses, Side
from llama_perf.run.paired_run import PairedRun
from llama_perf.run.worker import Worker
from llama_perf.run.worker_protocol import RowEnded, WorkerResult
from tests.correctness.support.made_up_workers import BASE, Machine, MadeUpWorker
from tests.correctness.support.record_samples import (
    CPU_ROW,
    OTHER,
    report_of,
    unmeasured,
)
from tests.correctness.support.terminals import quiet

GATE = PairsGate()


def compared(
    *rows: RowSpec, gate: PairsGate = GATE, path: Path | None = None, **how: Any
) -> Report:
    with closing(
        PairedProcesses(rows, options=RunRequest(**how), base=Side(package=BASE))
    ) as processes:
        run = PairedRun(report_of(selected=len(rows)), gate, processes, path=path)
        display = quiet()
        display.plan_rows([(row, "") for row in rows])
        for row in rows:
            run.run_row(row, display)
    return run.report


def pairs_in(asked: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """The prepared sides and the samples of each pair."""
    pair: list[tuple[str, str]] = []
    for side, action in asked:
        if action == "prepare" and len(pair) > 2:
            yield pair
            pair = []
        if action in {"prepare", "sample"}:
            pair.append((side, action))
    yield pair


def test_a_block_has_each_side_built_first_once_and_samples_are_balanced(
    machine: Machine,
) -> None:
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is Verdict.SAME
    assert "4 pairs, resident processes" in comparison.reason
    pairs = list(pairs_in(machine.asked))
    assert len(pairs) == 4
    built_first = []
    for pair in pairs:
        prepared, samples = pair[:2], [side for side, _ in pair[2:]]
        first, second = (side for side, action in prepared if action == "prepare")
        assert {first, second} == set(SIDES)
        built_first.append(first)
        # A B B A, then B A A B; as many of each.
        assert samples == [
            *(first, second, second, first, second, first, first, second) * 2,
            *(first, second, second, first),
        ]
    for block in (built_first[:2], built_first[2:]):
        assert set(block) == set(SIDES)
    # A pair is built only when all memory of the one before is free.
    steps = [action for _, action in machine.actions("forget", "prepare")]
    assert steps == [*["prepare"] * 2, *["forget"] * 2] * 4
    # Both load at the same time.
    assert machine.asked[:2] == [("head", "start"), ("base", "start")]
    assert {action for _, action in machine.asked[2:4]} == {"load"}


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.25, Verdict.SLOWER), (1.0, Verdict.SAME), (0.8, Verdict.FASTER)],
)
def test_a_clear_row_takes_two_blocks(
    machine: Machine, factor: float, expected: Verdict
) -> None:
    def ns(side: str, number: int) -> int:
        # Every third pair of samples falls into a slow minute.
        minute = 1.2 if number // 2 % 3 == 2 else 1.0
        return round(10**8 * minute * (factor if side == "head" else 1.0))

    machine.ns = ns
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is expected
    assert "4 pairs" in comparison.reason
    change = comparison.changes[0].change
    assert change == pytest.approx(1 / factor - 1, abs=1e-6)


def test_what_falls_on_the_side_built_first_cancels(machine: Machine) -> None:
    def ns(side: str, _number: int) -> int:
        prepared = [one for one, action in machine.asked if action == "prepare"]
        return 118_000_000 if prepared[-2] == side else 100_000_000

    machine.ns = ns
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is Verdict.SAME
    assert comparison.changes[0].change == pytest.approx(0, abs=1e-9)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call here")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_main_threads_of_a_cpus_processes_share_a_core(
    machine: Machine, device: str
) -> None:
    before, seen = os.sched_getaffinity(0), set()

    def ns(_side: str, _number: int) -> int:
        seen.add(frozenset(os.sched_getaffinity(0)))
        return 10**8

    machine.ns = ns
    with closing(
        PairedProcesses([CPU_ROW], options=RunRequest(), base=Side(package=BASE))
    ) as processes:
        pairs = processes.measure(CPU_ROW, print)
        pairs.way = paired.RESIDENT
        pairs.row = replace(CPU_ROW, device=device)
        processes.add_block(pairs, print)
    assert len(pairs.blocks) == 1
    assert seen == {frozenset({max(before)} if device == "cpu" else before)}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("hit_pairs", "again"), [(1, 1), (2, 2), (9, 4)])
def test_a_disturbed_block_is_measured_again_whichever_side_it_was(
    machine: Machine, side: str, hit_pairs: int, again: int
) -> None:
    """Its third try counts in any case. A disturbed pair ends a try."""
    of_a_pair = 10

    def ns(sampled: str, number: int) -> int:
        # In three of a pair's five rounds.
        is_hit = sampled == side and number % of_a_pair in {1, 4, 9}
        return 2 * 10**8 if is_hit and number < hit_pairs * of_a_pair else 10**8

    machine.ns = ns
    (comparison,) = compared(CPU_ROW).comparisons
    # Third tries that are disturbed count as they are.
    counted = {"base": Verdict.FASTER, "head": Verdict.SLOWER}[side]
    assert comparison.verdict is (counted if hit_pairs == 9 else Verdict.SAME)
    assert "4 pairs" in comparison.reason
    assert f"disturbed blocks, measured again: {again}" in comparison.reason
    assert machine.count(side, "sample") == (4 + again) * of_a_pair


@pytest.mark.parametrize(
    ("sample_s", "rounds", "hit_rounds", "again"),
    [
        *((3.0, 1, 0, 0), (3.0, 1, 1, 1), (0.2, 2, 1, 1), (0.16, 3, 1, 1)),
        *((0.12, 4, 1, 0), (0.12, 4, 2, 1), (0.1, 5, 1, 0), (0.1, 5, 2, 1)),
    ],
)
def test_a_pair_is_disturbed_where_a_third_of_its_rounds_are(
    machine: Machine, sample_s: float, rounds: int, hit_rounds: int, again: int
) -> None:
    usual_ns = round(sample_s * 1e9)

    def ns(side: str, number: int) -> int:
        # The first sample of a round, of either side in turn.
        hit_side = SIDES[number // 2 % 2]
        is_hit = number in range(1, 2 * hit_rounds, 2) and side == hit_side
        return 2 * usual_ns if is_hit else usual_ns

    machine.ns = ns
    machine.changes = {"sample_ns": (usual_ns, usual_ns)}
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is Verdict.SAME
    assert comparison.changes[0].change == pytest.approx(0, abs=1e-9)
    assert machine.count("head", "sample") == (4 + again) * 2 * rounds
    says_so = f"disturbed blocks, measured again: {again}"
    assert comparison.reason.endswith(says_so) == bool(again)


def test_slow_rows_take_one_round(machine: Machine) -> None:
    machine.changes = {"sample_ns": (3 * 10**9, 3 * 10**9)}
    compared(CPU_ROW)
    assert machine.count("base", "sample") == machine.count("head", "sample") == 4 * 2


def test_workers_are_replaced_and_the_other_side_starts_first(machine: Machine) -> None:
    rows = [replace(CPU_ROW, max_new_tokens=number) for number in range(1, 8)]
    report = compared(*rows, inject_slowdown=(("*", 0.5),))
    starts = [side for side, action in machine.asked if action == "start"]
    assert starts == ["head", "base", "base", "head"]
    assert machine.slowdowns == {"base": (), "head": (("*", 0.5),)}
    assert report.overall is not None
    assert report.overall.endswith("the mean of 7 rows")
    assert len(report.comparisons) == 7


def test_further_blocks_have_processes_of_their_own(machine: Machine) -> None:
    """A bias of two processes, here of 6 %, is not taken for a loss."""
    bias = {2: 0.06, 4: 0.05, 6: -0.05, 8: 0.04}

    def ns(side: str, _number: int) -> int:
        started = machine.count("base", "start") + machine.count("head", "start")
        return round(10**8 * (1 + bias.get(started, -0.05) * (side == "head")))

    machine.ns = ns
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is Verdict.SAME
    starts = [side for side, action in machine.asked if action == "start"]
    pairs = [starts[at : at + 2] for at in range(0, len(starts), 2)]
    # The first two blocks have the same processes.
    assert comparison.pairs is not None
    assert len(pairs) == comparison.pairs // 2 - 1 > 2
    assert pairs == [["head", "base"], ["base", "head"]] * (len(pairs) // 2) + (
        pairs[:1] if len(pairs) % 2 else []
    )
    # New ones compile the row before its first pair is built in an order.
    place = len(machine.asked) - machine.asked[::-1].index((starts[-1], "start"))
    actions = [action for _, action in machine.asked[place : place + 6]]
    assert sorted(actions) == sorted(["load", "prepare", "forget"] * 2)


def test_an_older_base_runs_in_turn(machine: Machine) -> None:
    machine.keeps_rows["base"] = False
    machine.tok_s = lambda side, _number: 100.0 if side == "base" else 80.0
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is Verdict.SLOWER
    way = "fresh processes in turn, since the base's revision keeps no row ready"
    assert comparison.reason.endswith(way)
    # The one that measured first, and the four pairs.
    assert machine.count("base", "run") == machine.count("head", "run") == 5
    runs = [side for side, action in machine.asked if action == "run"][2:]
    assert [set(runs[at : at + 2]) for at in (0, 2, 4, 6)] == [set(SIDES)] * 4
    assert runs[0] != runs[2]
    assert not machine.actions("prepare", "sample")


def test_two_rows_that_do_not_fit_run_in_turn(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = type(device_of(torch.device("cpu")))
    monkeypatch.setattr(cpu, "free_memory_bytes", lambda _: 15 * 10**8)
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.reason.endswith("since two rows need 2.0 GB of 1.5 GB")
    assert not machine.actions("prepare")


def test_a_side_that_cannot_be_built_beside_the_other_runs_in_turn(
    machine: Machine,
) -> None:
    machine.ends["head", "prepare"] = unmeasured(Status.NOT_RUN, "needs 9 GB")
    (comparison,) = compared(CPU_ROW).comparisons
    assert comparison.verdict is Verdict.SAME
    assert comparison.reason.endswith("since two at once cannot: needs 9 GB")


@pytest.mark.parametrize("action", ["run", "prepare", "sample"])
def test_a_side_that_breaks_ends_its_row_and_no_other(
    machine: Machine, action: str, tmp_path: Path
) -> None:
    machine.ends["head", action] = unmeasured(Status.INVALID, "its process ended")
    path = tmp_path / "results.json"
    with closing(
        PairedProcesses([CPU_ROW, OTHER], options=RunRequest(), base=Side(package=BASE))
    ) as processes:
        run = PairedRun(report_of(selected=2), PairsGate(), processes, path=path)
        display = quiet()
        display.plan_rows([(row, "") for row in (CPU_ROW, OTHER)])
        broken = run.run_row(CPU_ROW, display)
        machine.ends.clear()
        before = machine.count("head", "start")
        whole = run.run_row(OTHER, display)
    assert (broken.verdict, broken.failed) == (Verdict.INVALID, True)
    assert broken.reason == "head: its process ended"
    assert whole.verdict is Verdict.SAME
    assert machine.count("head", "start") == before + 1
    assert path.read_text(encoding="utf-8").count('"verdict"') == 2


def test_a_peak_that_grew_in_one_process_is_measured_again(machine: Machine) -> None:
    peaks = iter([2 * 10**9, *[10**9] * 9])

    class Growing(MadeUpWorker):
        def run(self, row: RowSpec, _progress: object) -> WorkerResult:
            ended = super().run(row, _progress)
            assert ended.result.measurement is not None
            figures = replace(ended.result.measurement, peak_memory_bytes=next(peaks))
            return replace(ended, result=replace(ended.result, measurement=figures))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "Worker", lambda **how: Growing(machine, **how))
        (comparison,) = compared(CPU_ROW).comparisons
    # The head was measured first.
    assert comparison.verdict is Verdict.SAME
    assert machine.count("head", "run") == machine.count("base", "run") == 3


ROW = RowSpec(
    model="stories15M", dtype="float32", device="cpu", max_new_tokens=4, num_samples=2
)


def test_a_real_worker_keeps_a_row_and_frees_it() -> None:
    with closing(Worker(options=RunRequest(), devices=["cpu"])) as worker:
        worker.load(ROW)
        assert worker.keeps_rows
        assert worker.run(ROW, lambda _: None).result.status is Status.MEASURED
        for _ in range(2):
            worker.prepare(ROW, lambda _: None)
            assert all(worker.sample(ROW) > 0 for _ in range(3))
        # A row that is measured, and one that is forgotten twice, leave none behind.
        worker.forget(ROW)
        worker.forget(ROW)
        wrong = replace(ROW, quantization="fp6", kernels="torchao")
        with pytest.raises(RowEnded) as ended:
            worker.prepare(wrong, lambda _: None)
        assert ended.value.result.result.status is Status.NOT_RUN
        worker.prepare(ROW, lambda _: None)
        assert worker.sample(ROW) > 0


def test_a_worker_that_is_asked_for_a_sample_without_a_row_breaks() -> None:
    with (
        closing(Worker(options=RunRequest(), devices=["cpu"])) as worker,
        pytest.raises(RowEnded) as ended,
    ):
        worker.sample(ROW)
    reason = ended.value.result.result.reason
    assert reason is not None
    assert "a row was prepared" in reason
