"""The rows of a run: in a worker process, within a time budget, continuing a run.

A worker measures one row after another (`worker`, `session`). Judges nothing; of a
baseline it knows only how long each row took.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from llama_perf.errors import RecordError
from llama_perf.gate.judgements import Trial
from llama_perf.measure.machine_notes import machine_notes
from llama_perf.measure.timing import Progress
from llama_perf.results.baseline import Baseline
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status, read_report
from llama_perf.rows.spec import RowSpec
from llama_perf.run.fresh_processes import confirmation
from llama_perf.run.lock import DeviceLock
from llama_perf.run.request import RunOptions
from llama_perf.run.session import Session
from llama_perf.run.worker import Worker


class Runner:
    """A run of `rows` on a device of this machine, which it locks until it is closed.

    `finished` are the results taken over from a run that is continued, by id. Raises
    BusyError where another run has the device, RecordError where there is nothing to
    continue.
    """

    def __init__(
        self,
        rows: Sequence[RowSpec],
        *,
        options: RunOptions,
        progress: Progress = lambda _text: None,
    ) -> None:
        self.rows = list(rows)
        self.options = options
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        """When the run began, ISO 8601 in UTC."""
        self._started_s = time.monotonic()
        self._devices = {row.device for row in rows}
        session = Session(self._devices, options=options)
        self.environment: Environment = session.environment
        self._seconds: Mapping[str, float] = {}
        self.finished: Mapping[str, RowResult] = {}
        if options.resume is not None:
            self.finished = finished_rows(
                options.resume, rows, options=options, environment=self.environment
            )
        self._longest_s = 0.0
        self._worker: Worker | None = None
        self._lock = DeviceLock(session.device, wait=options.wait)
        self._lock.acquire(progress)
        for note in machine_notes(session.device):
            progress(f"note: {note}\n")

    def expect(self, baseline: Baseline | None) -> None:
        """Learn from a baseline how long each row takes, for the time budget."""
        rows = () if baseline is None else baseline.rows
        self._seconds = {row.id: _seconds(row.measurement) for row in rows}

    def run_row(
        self, row: RowSpec, *, progress: Progress = lambda _text: None
    ) -> RowResult:
        """Measure one row, or take it over; a row that breaks is a result as well."""
        if (finished := self.finished.get(row.id)) is not None:
            progress("taken over")
            return finished
        if (reason := self._beyond_budget(row)) is not None:
            return RowResult(id=row.id, row=row, status=Status.NOT_RUN, reason=reason)
        begin = time.monotonic()
        result = self._measured(row, progress)
        self._longest_s = max(self._longest_s, time.monotonic() - begin)
        return result

    def _measured(self, row: RowSpec, progress: Progress) -> RowResult:
        if self._worker is None:
            self._worker = Worker(options=self.options, devices=self._devices)
        result = self._worker.run(row, progress=progress).result
        if self.options.isolate == "row" or _broke(result):
            self._end_worker()
        return result

    def confirm(
        self,
        row: RowSpec,
        unquantized: RowSpec | None = None,
        *,
        progress: Progress = lambda _text: None,
    ) -> list[Trial]:
        """Run the row, and the one it is compared with, in fresh processes in turn."""
        self._end_worker()
        return confirmation(row, unquantized, options=self.options, progress=progress)

    def _beyond_budget(self, row: RowSpec) -> str | None:
        """Why the row cannot finish within the time budget; None where it can."""
        budget_s = self.options.time_budget_s
        if budget_s is None:
            return None
        left_s = budget_s - (time.monotonic() - self._started_s)
        in_baseline = row.id in self._seconds
        needed_s = self._seconds[row.id] if in_baseline else self._longest_s
        if left_s > needed_s:
            return None
        source = "the baseline" if in_baseline else "the longest row so far"
        return (
            f"time-budget: {max(left_s, 0):.0f} of {budget_s:g} s are left, and it"
            f" needs about {needed_s:.0f} s by {source}"
        )

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def close(self) -> None:
        """End the worker and unlock the device."""
        self._end_worker()
        self._lock.release()


def _broke(result: RowResult) -> bool:
    """Whether the row may have raised an error that breaks CUDA for the next row.

    An error that a library is known to raise ends as NOT_RUN.
    """
    known = result.status is Status.NOT_RUN and result.row.upstream_issue is not None
    return known or result.status is Status.INVALID


def _seconds(measurement: Measurement) -> float:
    build_s = (measurement.build_s or 0.0) + (measurement.warm_up_s or 0.0)
    return build_s + sum(measurement.sample_ns) / 1e9


def finished_rows(
    path: Path,
    rows: Sequence[RowSpec],
    *,
    options: RunOptions,
    environment: Environment,
) -> Mapping[str, RowResult]:
    """The results in `path` of those `rows` that were measured, by id.

    A row that ended otherwise runs again. Raises RecordError where the file is missing
    or damaged, or where its run had other code, another environment or other
    slowdowns: its rows would not belong to this run.
    """
    report = read_report(path)
    if changed := report.environment.changes(environment, commit=True):
        raise RecordError(f"resume: {path} is of another run: {'; '.join(changed)}")
    wanted = {row.id: row for row in rows}
    finished = {}
    for result in report.results:
        row, measurement = wanted.get(result.id), result.measurement
        if row is None or measurement is None:
            continue
        if result.row.fingerprint != row.fingerprint:
            raise RecordError(f"resume: {path} has another row under {row.id}")
        if measurement.injected_slowdown != options.slowdown(row.id):
            raise RecordError(
                f"resume: {path} measured {row.id} with an inject-slowdown of"
                f" {measurement.injected_slowdown:.0%}"
            )
        finished[result.id] = result
    return finished
