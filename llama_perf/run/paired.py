"""A row in pairs of a base's and a head's process, in balanced blocks.

Both processes have the row ready at once, and run one generation at a time in turn: a
minute in which the machine is slow falls on both. The process that built the row first
is slower by up to a fifth on some machines, so each block has both orders. A process
keeps a bias of its own, so a row that its first blocks do not decide has new processes
for each further one. A block is measured again if a neighbour may have moved its
medians, whichever side it hit. Where two models do not fit, or the base is of a
revision that keeps no row ready, fresh processes run in turn, in the same order.
`gate/pairs.py` judges the blocks.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from llama_perf.devices.device import check_device, device_of
from llama_perf.devices.processor import main_threads_on_one_core
from llama_perf.files import CHECKOUT
from llama_perf.gate.blocks import MIN_BLOCKS, Block
from llama_perf.gate.pairs import SIDES, PairedRow
from llama_perf.results.run import Environment, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.worker import PYTHON, Worker
from llama_perf.run.worker_protocol import RowEnded

Progress = Callable[[str], None]
RESIDENT, IN_TURN = "resident processes", "fresh processes in turn"
# The least time in which both sides of a pair take their samples, in whole rounds. More
# of them would gain little: pairs differ by where their rows came to lie in memory. To
# start new processes takes long, so their pairs may take longer too.
_PAIR_S, _NEW_PROCESSES_PAIR_S = 2.0, 8.0
_MAX_ROUNDS = 12
DISTURBED, DISTURBED_SHARE, TRIES = 1.25, 1 / 3, 3
"""A round is disturbed where a sample took DISTURBED times as long as the fastest one
of its side and pair, a block where DISTURBED_SHARE of a pair's rounds are. A block has
so many TRIES, of which the last counts in any case."""
# A process's bias falls on all its rows. So others take over after some rows.
_ROWS_OF_WORKERS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """The folder with a side's `llama_perf`, and the Python that runs it."""

    package: Path = CHECKOUT
    python: Path = PYTHON


OURS = Side()
"""This checkout, and the Python that runs it."""


class _Pair(NamedTuple):
    """The log loss of a pair, and whether it was disturbed."""

    loss: float
    disturbed: bool = False


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
        head: Side = OURS,
    ) -> None:
        devices = {row.device for row in rows}
        unslowed = replace(options, inject_slowdown=())
        self._start: dict[str, Callable[..., Worker]] = {
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
        self._rows_left, self._ranks = 0, 1
        self._order = list(SIDES)
        self.environments: dict[str, Environment] = {}

    def close(self) -> None:
        """End the processes."""
        # An interrupt may come meanwhile, and each is closed once all the same.
        while self._workers:
            self._workers.popitem()[1].close()

    def measure(self, row: RowSpec, progress: Progress) -> PairedRow:
        """Measure a row once on each side, which shows whether both can run it."""
        if self._rows_left == 0:
            self._renew()
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
        if pairs.way == RESIDENT and _in_new_processes(pairs):
            self._renew()
            self._started(pairs.row, build=True)
        for tries_left in reversed(range(TRIES)):
            losses: dict[str, float] = {}
            for sides in (order, order[::-1]):
                pair = self._pair(pairs, sides, progress)
                if pair is None:
                    return
                if pair.disturbed and tries_left:
                    break
                losses[sides[0]] = pair.loss
            else:
                block = Block(base_first=losses["base"], head_first=losses["head"])
                pairs.blocks.append(block)
                return
            pairs.disturbed += 1

    def _renew(self) -> None:
        """Have other processes from now on; the other side's starts first."""
        self.close()
        self._rows_left = _ROWS_OF_WORKERS
        self._order.reverse()

    def _started(self, row: RowSpec, *, build: bool = False) -> Mapping[str, Worker]:
        """The two processes; new ones load what `row` needs at the same time.

        With `build` they also compile it, and free it again.
        """
        if self._ranks != row.ranks:
            self._renew()
            self._ranks = row.ranks
        new = [side for side in self._order if side not in self._workers]
        for side in new:
            self._workers[side] = self._start[side](ranks=row.ranks)

        def load(side: str) -> None:
            # What is wrong with the row is said when it is measured.
            with suppress(RowEnded):
                self._workers[side].load(row)
                if build:
                    self._workers[side].prepare(row, lambda _text: None)
                    self._workers[side].forget(row)

        with ThreadPoolExecutor(len(SIDES)) as threads:
            try:
                list(threads.map(load, new))
            except BaseException:
                # The threads wait for these processes.
                for side in new:
                    self._workers[side].kill()
                raise
        for side in new:
            worker = self._workers[side]
            self._keeps_rows[side] = worker.keeps_rows
            if not worker.keeps_rows:
                # An older revision's process ends at a task that it does not know.
                worker.close()
                self._workers[side] = self._start[side](ranks=row.ranks)
        return self._workers

    def _way(self, pairs: PairedRow) -> str:
        """How the blocks of a row can be measured."""
        for side, keeps_rows in self._keeps_rows.items():
            if not keeps_rows:
                return f"{IN_TURN}, since the {side}'s revision keeps no row ready"
        measured = [pairs.measurements(side)[0] for side in SIDES]
        needed = pairs.row.ranks_of_a_device * sum(
            max(one.peak_memory_bytes, one.build_peak_bytes or 0) for one in measured
        )
        free = device_of(check_device(pairs.row.device)).free_memory_bytes()
        if needed > free:
            return (
                f"{IN_TURN}, since two rows need {needed / 1e9:.1f} GB of"
                f" {free / 1e9:.1f} GB"
            )
        return RESIDENT

    def _pair(
        self, pairs: PairedRow, order: Sequence[str], progress: Progress
    ) -> _Pair | None:
        """A pair in the row's way; None where a side broke."""
        pair = None
        if pairs.way == RESIDENT:
            pair = self._resident_pair(pairs, order, progress)
        # Also where the row has just turned out not to fit twice.
        if pairs.way != RESIDENT:
            pair = self._pair_in_turn(pairs, order, progress)
        return pair

    def _resident_pair(
        self, pairs: PairedRow, order: Sequence[str], progress: Progress
    ) -> _Pair | None:
        """A pair's loss: the median over rounds of both sides' times.

        None where a side broke. A row that does not fit twice has another way then.
        """
        row = pairs.row
        workers = self._started(row)
        side = order[0]
        times_ns: dict[str, list[int]] = {side: [] for side in SIDES}
        losses = []
        try:
            start_s = time.monotonic()
            for side in order:
                workers[side].prepare(row, progress)
            # Where building takes long, more samples cost little.
            least_s = _NEW_PROCESSES_PAIR_S if _in_new_processes(pairs) else _PAIR_S
            rounds = _rounds(pairs, max(time.monotonic() - start_s, least_s))
            progress("sampling")
            with _on_the_same_core(workers.values(), row):
                for number in range(rounds):
                    first, second = order if number % 2 == 0 else order[::-1]
                    for side in (first, second, second, first):
                        times_ns[side].append(workers[side].sample(row))
                    base_ns, head_ns = (sum(times_ns[side][-2:]) for side in SIDES)
                    losses.append(math.log(head_ns / base_ns))
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
        return _Pair(median(losses), _is_disturbed(times_ns.values()))

    def _pair_in_turn(
        self, pairs: PairedRow, order: Sequence[str], progress: Progress
    ) -> _Pair | None:
        """A pair of fresh processes; None where one broke."""
        self.close()
        tok_s = {}
        for side in order:
            progress(f"a fresh process of the {side}")
            result = self._in_fresh_process(side, pairs.row)
            pairs.results[side].append(result)
            if result.measurement is None:
                return None
            tok_s[side] = result.measurement.tok_s
        return _Pair(math.log(tok_s["base"] / tok_s["head"]))

    def _in_fresh_process(self, side: str, row: RowSpec) -> RowResult:
        with closing(self._start[side](ranks=row.ranks)) as worker:
            return worker.run(row, lambda _text: None).result


def _on_the_same_core(
    workers: Iterable[Worker], row: RowSpec
) -> AbstractContextManager[None]:
    """Bind the main threads of a CPU row's processes to one core.

    Where a neighbour slows one core, the process whose main thread stays there takes
    up to 90 % longer, for as long as it stays.
    """
    if row.device != "cpu":
        return nullcontext()
    return main_threads_on_one_core([worker.process_id for worker in workers])


def _is_disturbed(times_ns: Iterable[Sequence[int]]) -> bool:
    """Whether so many of a pair's rounds are that its median may show it.

    `times_ns` has the samples of each side, two a round.
    """
    is_slow = [[ns > DISTURBED * min(side) for ns in side] for side in times_ns]
    is_hit = [any(both) for both in zip(*is_slow, strict=True)]
    rounds = [any(two) for two in zip(is_hit[::2], is_hit[1::2], strict=True)]
    return fmean(rounds) >= DISTURBED_SHARE


def _in_new_processes(pairs: PairedRow) -> bool:
    """Whether the next block of resident processes has some of its own."""
    return len(pairs.blocks) >= MIN_BLOCKS


def _rounds(pairs: PairedRow, seconds: float) -> int:
    """How many rounds of four samples a pair takes in about so many seconds."""
    samples = [
        median(one.sample_ns) for side in SIDES for one in pairs.measurements(side)
    ]
    rounds = round(seconds * 1e9 / (4 * max(samples)))
    return min(max(rounds, 1), _MAX_ROUNDS)
