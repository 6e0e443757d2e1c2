"""Rows in several fresh processes each: to record, or to confirm a loss.

A process runs one row, so no row depends on those that were selected with it, and a
crash names its row. The rows take turns, so that a slow minute of the machine falls on
all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llama_perf.errors import RecordError
from llama_perf.gate import thresholds
from llama_perf.gate.evidence import Trial
from llama_perf.results.disturbance import disturbance
from llama_perf.results.run import Environment, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.worker_protocol import NOTE


def default_processes(rows: Sequence[RowSpec]) -> int:
    """How many processes a baseline of these rows runs each of them in."""
    return 10 if any(row.device == "cuda" for row in rows) else 5


def in_fresh_processes(
    rows: Sequence[RowSpec],
    *,
    processes: int,
    options: RunRequest,
    display: Display,
    leave_out: Callable[[str], None] | None = None,
) -> tuple[Environment, list[RowResult]]:
    """Run each row once, then each once more, and so on.

    Returns the environment and all results. A row that cannot run here is tried once.
    The first process of a row compiles anew, which gives the time to compile; the
    others use what is there already. A process that was disturbed is named. Where a row
    ends INVALID, `leave_out` is told why, and the results lack it. Raises RecordError
    without `leave_out`, where no row is left, and where the environment changes: the
    results are then no baseline.
    """
    devices = {row.device for row in rows}
    runnable, first = list(rows), None
    results: list[RowResult] = []
    numbers = range(1, processes + 1)
    display.plan_rows(
        [
            (row, f"process {number} of {processes}")
            for number in numbers
            for row in rows
        ]
    )
    for number in numbers:
        # A closeness is the same in every process.
        first_time = number == 1
        asked = replace(
            options, cold_compile=first_time, closeness=options.closeness and first_time
        )
        for row in list(runnable):
            with display.next() as running:
                ended = worker.run_in_process(
                    row, options=asked, devices=devices, progress=running.step
                )
                result, environment = ended.result, ended.environment
                words = disturbance(result)
                if words:
                    running.step(f"{NOTE}disturbed: {words}")
                running.end(
                    result.summary,
                    "disturbed" if words else "",
                    "yellow",
                    counted=result.measurement is not None,
                )
            if result.status is Status.INVALID or environment is None:
                problem = (
                    f"{row.id} is INVALID in process {number} of {processes}:"
                    f" {result.reason}"
                )
                if leave_out is None:
                    raise RecordError(f"baseline: {problem}")
                leave_out(problem)
                results = [other for other in results if other.id != row.id]
                runnable.remove(row)
                display.drop(row.id)
                continue
            first = first or environment
            if changed := first.changes(environment):
                raise RecordError(
                    "baseline: the environment changed between processes:"
                    f" {'; '.join(changed)}"
                )
            if result.status is Status.NOT_RUN and number == 1:
                runnable.remove(row)
                display.drop(row.id)
            results.append(result)
    if first is None:
        raise RecordError("baseline: every row ended INVALID")
    return first, results


def in_confirmation(
    row: RowSpec,
    unquantized: RowSpec | None,
    *,
    options: RunRequest,
    progress: Callable[[str], None],
) -> list[Trial]:
    """Run the row in the fresh processes of a confirmation.

    Where the row is compared with the unquantized one, that runs as often, and they
    take turns at going first. The first process without a measurement ends it: fewer
    processes decide nothing.
    """
    trials: list[Trial] = []
    pair = [row] if unquantized is None else [row, unquantized]
    for number in range(1, thresholds.CONFIRM_PROCESSES + 1):
        progress(f"fresh process {number} of {thresholds.CONFIRM_PROCESSES}")
        results: dict[RowSpec | None, RowResult] = {}
        for one in pair if number % 2 else reversed(pair):
            ended = worker.run_in_process(one, options=options, devices=[row.device])
            results[one] = ended.result
        trial = Trial(row=results[row], unquantized=results.get(unquantized))
        trials.append(trial)
        if trial.missed is not None:
            break
    return trials
