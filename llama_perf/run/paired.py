"""A row in pairs of a base's and a head's process, in balanced blocks.

Both processes have the row ready at once, and run one generation at a time in turn: a
minute in which the machine is slow falls on both. The process that built the row first
is slower by up to a fifth on some machines, so each block has both orders. Where two
models do not fit, or the base is of a revision that keeps no row ready, fresh processes
run in turn, in the same order. `gate/pairs.py` judges the blocks.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

from llama_perf.devices.device import check_device, device_of
from llama_perf.files import CHECKOUT, write_atomically
from llama_perf.gate.blocks import MIN_BLOCKS, BlockTest
from llama_perf.gate.pairs import (
    SIDES,
    PairedRow,
    PairsGate,
    change_in_words,
    described,
    overall,
)
from llama_perf.report.table import shown
from llama_perf.results.run import Comparison, Environment, Report, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.worker import PYTHON, Worker
from llama_perf.run.worker_protocol import NOTE, RowEnded
from llama_perf.strict_json import to_json

Progress = Callable[[str], None]
RESIDENT, IN_TURN = "resident processes", "fresh processes in turn"
# The least time in which both sides of a pair take their samples, in whole rounds.
_PAIR_S, _CLOSE_PAIR_S = 2.0, 6.0
_MAX_ROUNDS = 12
# A worker's own place in memory falls on all its rows. So others take over after some
# rows, and the other side's starts first.
_ROWS_OF_WORKERS = 5
# Processes of each side that decide whether a peak has grown.
_PEAKS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """The folder with a side's `llama_perf`, and the Python that runs it."""

    package: Path = CHECKOUT
    python: Path = PYTHON


class PairedProcesses:
    """Two worker processes, which measure row after row; close them after the last.

    Slowdowns are injected only into the head, by default this checkout.
    `environments` has those of the sides, once they are known.
    """

    def __init__(
        self,
        rows: Sequence[RowSpec],
        *,
        options: RunRequest,
        base: Side,
        head: Side = Side(),
    ) -> None:
        devices = {row.device for row in rows}
        unslowed = replace(options, inject_slowdown=())
        self._start: dict[str, Callable[[], Worker]] = {
            side: partial(
                Worker,
                options=own_options,
                devices=devices,
                package=where.package,
                python=where.python,
            )
            for side, where, own_options in (
                ("base", base, unslowed),
                ("head", head, options),
            )
        }
        self._workers: dict[str, Worker] = {}
        self._keeps_rows: dict[str, bool] = {}
        self._rows_left = 0
        self._order = list(SIDES)
        self.environments: dict[str, Environment] = {}

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers = {}

    def measure(self, row: RowSpec, progress: Progress) -> PairedRow:
        """Measure a row once on each side, which shows whether both can run it."""
        if self._rows_left == 0:
            self.close()
            self._rows_left = _ROWS_OF_WORKERS
            self._order.reverse()
        self._rows_left -= 1
        pairs = PairedRow(row=row, results={side: [] for side in SIDES})
        workers = self._started(row)
        for side in self._order:
            progress(f"measuring the {side}")
            ended = workers[side].run(row, progress)
            pairs.results[side].append(ended.result)
            if ended.environment is not None:
                self.environments.setdefault(side, ended.environment)
        if pairs.missed is not None:
            # A row that raised may have broken its process for the next one.
            self.close()
        return pairs

    def measure_again(self, pairs: PairedRow, progress: Progress) -> None:
        """Measure a row once more on each side, in fresh processes."""
        self.close()
        for side in self._order:
            progress(f"measuring the {side} again")
            pairs.results[side].append(self._in_fresh_process(side, pairs.row))

    def add_block(self, pairs: PairedRow, progress: Progress) -> None:
        """Measure the next block of a row: a pair in each order.

        A row that breaks on a side ends with that result there, and without the block.
        """
        order = list(SIDES)
        random.Random(f"{pairs.row.id} {len(pairs.blocks)}").shuffle(order)
        pairs.way = pairs.way or self._way(pairs)
        losses = []
        for sides in (order, order[::-1]):
            loss = None
            if pairs.way == RESIDENT:
                loss = self._resident_loss(pairs, sides, progress)
            if pairs.way != RESIDENT:
                loss = self._loss_in_turn(pairs, sides, progress)
            if loss is None:
                return
            losses.append(loss)
        pairs.blocks.append(fmean(losses))

    def _started(self, row: RowSpec) -> Mapping[str, Worker]:
        """The two processes; new ones load what `row` needs at the same time."""
        new = [side for side in self._order if side not in self._workers]
        for side in new:
            self._workers[side] = self._start[side]()

        def load(side: str) -> None:
            # What is wrong with the row is said when it is measured.
            with suppress(RowEnded):
                self._workers[side].load(row)

        with ThreadPoolExecutor(len(SIDES)) as threads:
            list(threads.map(load, new))
        for side in new:
            worker = self._workers[side]
            self._keeps_rows[side] = worker.keeps_rows
            if not worker.keeps_rows:
                # An older revision's process ends at a task that it does not know.
                worker.close()
                self._workers[side] = self._start[side]()
        return self._workers

    def _way(self, pairs: PairedRow) -> str:
        """How the blocks of a row can be measured."""
        for side, keeps_rows in self._keeps_rows.items():
            if not keeps_rows:
                return f"{IN_TURN}, since the {side}'s revision keeps no row ready"
        measured = [pairs.measurements(side)[0] for side in SIDES]
        needed = sum(
            max(one.peak_memory_bytes, one.build_peak_bytes or 0) for one in measured
        )
        free = device_of(check_device(pairs.row.device)).free_memory_bytes()
        if needed > free:
            return (
                f"{IN_TURN}, since two rows need {needed / 1e9:.1f} GB of"
                f" {free / 1e9:.1f} GB"
            )
        return RESIDENT

    def _resident_loss(
        self, pairs: PairedRow, order: Sequence[str], progress: Progress
    ) -> float | None:
        """The log loss of a pair: the median over rounds of both sides' times.

        None where a side broke. A row that does not fit twice has another way then.
        """
        row = pairs.row
        workers = self._started(row)
        side = order[0]
        try:
            # All memory is free before the first side takes its own.
            for side in order:
                workers[side].forget(row)
            start_s = time.monotonic()
            for side in order:
                workers[side].prepare(row, progress)
            # Where building takes long, more samples cost little. Where the first
            # blocks decided nothing, the next ones are to scatter less.
            is_close = len(pairs.blocks) >= MIN_BLOCKS
            sampling_s = _CLOSE_PAIR_S if is_close else _PAIR_S
            sampling_s = max(time.monotonic() - start_s, sampling_s)
            progress("sampling")
            losses = []
            for number in range(_rounds(pairs, sampling_s)):
                first, second = order if number % 2 == 0 else order[::-1]
                total_ns = dict.fromkeys(SIDES, 0)
                for side in (first, second, second, first):
                    total_ns[side] += workers[side].sample(row)
                losses.append(math.log(total_ns["head"] / total_ns["base"]))
            for side in order:
                workers[side].forget(row)
        except RowEnded as ended:
            self.close()
            result = ended.result.result
            if result.status is Status.NOT_RUN:
                # Each side has measured the row while the other kept none.
                pairs.way = f"{IN_TURN}, since two at once cannot: {result.reason}"
            else:
                pairs.results[side].append(result)
            return None
        return median(losses)

    def _loss_in_turn(
        self, pairs: PairedRow, order: Sequence[str], progress: Progress
    ) -> float | None:
        """The log loss of a pair of fresh processes; None where one broke."""
        self.close()
        tok_s = {}
        for side in order:
            progress(f"a fresh process of the {side}")
            result = self._in_fresh_process(side, pairs.row)
            pairs.results[side].append(result)
            if result.measurement is None:
                return None
            tok_s[side] = result.measurement.tok_s
        return math.log(tok_s["base"] / tok_s["head"])

    def _in_fresh_process(self, side: str, row: RowSpec) -> RowResult:
        with closing(self._start[side]()) as worker:
            return worker.run(row, lambda _text: None).result


def _rounds(pairs: PairedRow, seconds: float) -> int:
    """How many rounds of four samples a pair takes in about so many seconds."""
    samples = [
        median(one.sample_ns) for side in SIDES for one in pairs.measurements(side)
    ]
    rounds = round(seconds * 1e9 / (4 * max(samples)))
    return min(max(rounds, 1), _MAX_ROUNDS)


def measure_until_decided(
    row: RowSpec, processes: PairedProcesses, gate: PairsGate, progress: Progress
) -> PairedRow:
    """Measure a row on both sides until its blocks have decided, or it broke."""
    pairs = processes.measure(row, progress)
    while gate.needs_block(pairs):
        test = gate.test(pairs)
        so_far = "" if test is None else f", {change_in_words(test)}"
        number = len(pairs.blocks) + 1

        def step(text: str, head: str = f"block {number}{so_far}") -> None:
            progress(text if text.startswith(NOTE) else f"{head}: {text}")

        processes.add_block(pairs, step)
    # One process may have a larger peak by chance; the median of three decides.
    if pairs.missed is None and pairs.peak(gate.limits_of(row)).worse:
        while pairs.missed is None and len(pairs.results["head"]) < _PEAKS:
            processes.measure_again(pairs, progress)
    return pairs


def compare_sides(
    row: RowSpec,
    gate: PairsGate,
    *,
    options: RunRequest,
    base: Side,
    head: Side = Side(),
    progress: Progress,
) -> PairedRow:
    """Measure one row in processes of its own until its blocks have decided."""
    with closing(
        PairedProcesses([row], options=options, base=base, head=head)
    ) as processes:
        return measure_until_decided(row, processes, gate, progress)


class PairedRun:
    """The rows of a comparison by pairs, one after another, and their verdicts.

    `report` has the results and verdicts so far, and the file `path` has them after
    each row, where it is not None.
    """

    def __init__(
        self,
        report: Report,
        gate: PairsGate,
        processes: PairedProcesses,
        *,
        path: Path | None = None,
    ) -> None:
        self.report = report
        self._gate = gate
        self._processes = processes
        self._path = path
        self._tests: list[BlockTest] = []

    def run_row(self, row: RowSpec, display: Display) -> Comparison:
        """Measure the next row of the display's plan until it is decided."""
        with display.next() as running:
            pairs = measure_until_decided(
                row, self._processes, self._gate, running.step
            )
            result, comparison = self._gate.compare(pairs)
            figures, word, style = shown(result, comparison)
            test = self._gate.test(pairs)
            if pairs.missed is None and test is not None:
                self._tests.append(test)
                figures += f"  ({described(test)})"
            running.end(figures, word, style, counted=result.measurement is not None)
        report = self.report
        environments = self._processes.environments
        head = environments.get("head", report.environment)
        self.report = replace(
            report,
            environment=head,
            environment_changes=environments.get("base", head).changes(head),
            results=(*report.results, result),
            comparisons=(*report.comparisons, comparison),
            overall=overall(self._tests) if len(self._tests) > 1 else None,
        )
        if self._path is not None:
            write_atomically(self._path, to_json(self.report))
        return comparison
