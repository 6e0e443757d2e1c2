"""Rows in several fresh processes each: to record a baseline, to confirm a loss.

A process runs one row, so no row depends on those that were selected with it, and a
crash names its row. The rows take turns, so that a slow minute of the machine falls on
all of them.
"""

from collections.abc import Callable, Sequence

from llama_perf.errors import RecordError
from llama_perf.gate.judgements import Trial
from llama_perf.gate.thresholds import CONFIRM_PROCESSES
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.options import RunRequest

_PROCESSES = {"cuda": 10}


def default_processes(rows: Sequence[RowSpec]) -> int:
    """How many processes a baseline of these rows runs each of them in."""
    return max(_PROCESSES.get(row.device, 5) for row in rows)


def in_fresh_processes(
    rows: Sequence[RowSpec],
    *,
    processes: int,
    options: RunRequest,
    progress: Callable[[str], None],
) -> tuple[Environment, list[RowResult]]:
    """Run each row once, then each once more, and so on.

    Returns the environment and all results. A row that cannot run here is tried once.
    Raises RecordError where a row ends INVALID or the environment changes: the results
    are then no baseline.
    """
    devices = {row.device for row in rows}
    runnable, first = list(rows), None
    results = []
    for number in range(1, processes + 1):
        for row in list(runnable):
            progress(f"[process {number}/{processes}] {row.id}: ")
            ended = worker.run_in_process(row, options=options, devices=devices)
            result, environment = ended.result, ended.environment
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
                runnable.remove(row)
            results.append(result)
    assert first is not None, "a selection has at least one row"
    return first, results


def confirmation(
    row: RowSpec,
    unquantized: RowSpec | None,
    *,
    options: RunRequest,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Trial]:
    """Run the row in the fresh processes of a confirmation.

    Where the row is compared with the unquantized one, that runs as often, and they
    take turns at going first. The first process without a measurement ends it: fewer
    processes decide nothing.
    """
    trials: list[Trial] = []
    pair = [row] if unquantized is None else [row, unquantized]
    for number in range(1, CONFIRM_PROCESSES + 1):
        progress(f"fresh process {number} of {CONFIRM_PROCESSES}, ")
        results = {
            one: worker.run_in_process(
                one, options=options, devices=[row.device]
            ).result
            for one in (pair if number % 2 else reversed(pair))
        }
        other = None if unquantized is None else results[unquantized]
        trial = Trial(row=results[row], unquantized=other)
        trials.append(trial)
        if trial.missed is not None:
            break
    return trials
