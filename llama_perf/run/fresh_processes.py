"""Rows in several fresh processes each: a baseline's, and those that confirm a loss.

One process is one row: it shows what that row shows whatever was selected with it, as
the processes that confirm a loss do, and one that crashes names its row. The rows take
turns, so that a slow minute of the machine does not fall on one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llama_perf.errors import RecordError, SpecError
from llama_perf.gate.confirmation import Trial
from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.request import RunOptions

DEFAULT_PROCESSES = {"cuda": 10}
_PROCESSES = 5
_MOST_PROCESSES = 1000


def check_processes(processes: int) -> None:
    """Raise SpecError for a number of processes that is none."""
    if not 1 <= processes <= _MOST_PROCESSES:
        raise SpecError("processes", processes, f"allowed: 1 to {_MOST_PROCESSES}")


def default_processes(rows: Sequence[RowSpec]) -> int:
    """How many processes a baseline of these rows takes."""
    return max(DEFAULT_PROCESSES.get(row.device, _PROCESSES) for row in rows)


def in_fresh_processes(
    rows: Sequence[RowSpec],
    *,
    processes: int,
    options: RunOptions,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[tuple[RowResult, Environment]]:
    """Each row once, then each once more, and so on; (result, where it was measured).

    A row that cannot run here is tried once. Raises RecordError where a row ends
    INVALID or the environment changes on the way: what came before is then no baseline.
    """
    devices = {row.device for row in rows}
    left, first = list(rows), None
    for number in range(1, processes + 1):
        for row in list(left):
            progress(f"[process {number}/{processes}] {row.id}: ")
            found = worker.run_in_process(row, options=options, devices=devices)
            result, environment = found.result, found.environment
            progress(f"{result.summary}\n")
            if result.status is Status.INVALID or environment is None:
                raise RecordError(
                    f"baseline: {row.id} is INVALID in process {number} of"
                    f" {processes}: {result.reason}"
                )
            first = first or environment
            if changed := first.changes(environment):
                raise RecordError(
                    "baseline: the environment changed between processes:"
                    f" {'; '.join(changed)}"
                )
            if result.status is Status.NOT_RUN and number == 1:
                left.remove(row)
            yield result, environment


def confirmation(
    row: RowSpec,
    unquantized: RowSpec | None = None,
    *,
    options: RunOptions,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Trial]:
    """The row in the fresh processes that a confirmation takes.

    Each beside one of the unquantized row that it is compared by, if it is; they take
    turns at going first. It ends at the first that was not measured: what is left then
    decides nothing.
    """
    trials: list[Trial] = []
    for number in range(1, THRESHOLDS.confirm_processes + 1):
        progress(f"fresh process {number} of {THRESHOLDS.confirm_processes}, ")
        pair = [row] if unquantized is None else [row, unquantized]
        results = {
            each.id: worker.run_in_process(
                each, options=options, devices=[row.device]
            ).result
            for each in (pair if number % 2 else reversed(pair))
        }
        trial = Trial(
            row=results[row.id],
            unquantized=None if unquantized is None else results[unquantized.id],
        )
        trials.append(trial)
        if trial.missed is not None:
            break
    return trials
