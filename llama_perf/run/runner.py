"""All rows of a run -> results: isolated, resumed, within a time budget.

Shared by the pytest plugin and `llama-perf run`. One row is measured by
`llama_perf.run.session`, here or in a `worker`. Knows no baseline but the time that a
row took for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from llama_perf.gate.confirmation import Trial
from llama_perf.measure.machine_notes import machine_notes
from llama_perf.measure.timing import Progress
from llama_perf.results.baseline import Baseline
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.fresh_processes import confirmation
from llama_perf.run.lock import DeviceLock
from llama_perf.run.options import RunOptions
from llama_perf.run.resume import finished_rows
from llama_perf.run.session import Session
from llama_perf.run.worker import Worker


class Runner:
    """A run of `rows` on this machine, which it holds until it is closed.

    `finished` are the results it takes over, by id. Raises BusyError where another run
    has the device, RecordError where there is nothing to resume.
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
        self._started_s = time.monotonic()
        self._session = Session(rows, options=options)
        self._earlier: Mapping[str, Measurement] = {}
        self.finished: Mapping[str, RowResult] = {}
        if options.resume is not None:
            self.finished = finished_rows(
                options.resume, rows, options=options, environment=self.environment
            )
        self._longest_s = 0.0
        self._worker: Worker | None = None
        self._lock = DeviceLock(self._session.device, wait=options.wait)
        self._lock.acquire(progress)
        for note in machine_notes(self._session.device):
            progress(f"note: {note}\n")

    @property
    def started(self) -> str:
        """When the run began, ISO 8601 in UTC."""
        return self._session.started

    @property
    def environment(self) -> Environment:
        """The machine and the libraries."""
        return self._session.environment

    def expect(self, baseline: Baseline | None) -> None:
        """Take from a baseline how long each row takes, for the time budget."""
        rows = () if baseline is None else baseline.rows
        self._earlier = {row.id: row.measurement for row in rows}

    def run_row(
        self, row: RowSpec, *, progress: Progress = lambda _text: None
    ) -> RowResult:
        """Measure one row, or take it over; whatever happens is in the result."""
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
        if self.options.isolate == "none":
            return self._session.run_row(row, progress=progress)
        if self._worker is None:
            devices = {each.device for each in self.rows}
            self._worker = Worker(options=self.options, devices=devices)
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
        """The row, and what it is compared by, in fresh processes, one at a time."""
        self._end_worker()
        return confirmation(row, unquantized, options=self.options, progress=progress)

    def _beyond_budget(self, row: RowSpec) -> str | None:
        """Why the row cannot be finished within the time budget, if it cannot."""
        budget = self.options.time_budget_s
        if budget is None:
            return None
        left = budget - (time.monotonic() - self._started_s)
        before = self._earlier.get(row.id)
        needed = self._longest_s if before is None else _seconds(before)
        if left > needed:
            return None
        source = "the longest row so far" if before is None else "the baseline"
        return (
            f"time-budget: {max(left, 0):.0f} of {budget:g} s are left, and it needs"
            f" about {needed:.0f} s by {source}"
        )

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def close(self) -> None:
        """End the worker and let go of the device."""
        self._end_worker()
        self._lock.release()


def _broke(result: RowResult) -> bool:
    """Whether the row may have raised what ruins a card's context for the next row.

    Where a library is known to break a row, its exception ends as NOT_RUN.
    """
    known = result.status is Status.NOT_RUN and result.row.upstream_issue is not None
    return known or result.status is Status.INVALID


def _seconds(measurement: Measurement) -> float:
    built = (measurement.build_s or 0.0) + (measurement.warm_up_s or 0.0)
    return built + sum(measurement.sample_ns) / 1e9
