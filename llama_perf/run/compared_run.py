"""A run and its verdicts: measure a row, judge it, confirm it where in doubt, save it.

The pytest plugin and `llama-perf run` both make a `ComparedRun` and call `run_row` for
each row. A worker measures one row after another (`worker`, `session`). Knows nothing
of either command line.
"""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from llama_perf.errors import RecordError, UserError
from llama_perf.gate.evidence import Confirmation
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.thresholds import CONFIRM_PROCESSES
from llama_perf.gate.verdict import compare, not_compared
from llama_perf.measure.environment import machine_notes, of_rows
from llama_perf.report.table import shown
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import (
    Comparison,
    Environment,
    Report,
    RowResult,
    Status,
    Verdict,
    read_report,
)
from llama_perf.rows.selection import every_row
from llama_perf.rows.spec import RowSpec
from llama_perf.run import baseline_patch
from llama_perf.run.baseline_patch import Offer
from llama_perf.run.confirmation import blame, confirm, rows_by_pairs
from llama_perf.run.display import Display, Running
from llama_perf.run.lock import locked
from llama_perf.run.options import OPTIONS, RunRequest
from llama_perf.run.results_file import ResultsFile
from llama_perf.run.revision import resolve
from llama_perf.run.row_worker import RowWorker
from llama_perf.run.session import Session
from llama_perf.run.time_left import Task, expected_s, stored_s
from llama_perf.run.worker_protocol import NOTE
from llama_perf.words import counted


class ComparedRun:
    """A run of `rows` on a device of this machine, which it locks until it is closed.

    `named` is a baseline that the user named, and where it comes from; without it a
    comparison takes the device's own from the folder of baselines. `report` has the
    results and verdicts, and `file` has them after each row. That file also has the
    rows of a continued run that are still to be taken over, so that a run which stops
    again loses none of them.

    Raises UserError where another run has the device, RecordError for a damaged
    baseline or where there is nothing to continue.
    """

    def __init__(
        self,
        rows: Sequence[RowSpec],
        request: RunRequest,
        *,
        named: tuple[Path | str, Baseline] | None = None,
        display: Display,
    ) -> None:
        _check_comparing(request)
        baseline_patch.check(request, is_named=named is not None)
        if request.base is not None:
            resolve(request.base)
        self._request, self._display = request, display
        self.file = ResultsFile(request.results)
        self._started_s = time.monotonic()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._devices = {row.device for row in rows}
        session = Session(self._devices, options=request)
        environment = of_rows(session.environment, rows)
        self._to_take_over = _finished_rows(rows, request, environment)
        self._worker = RowWorker(request, self._devices)
        self._ended: dict[str, tuple[RowResult, Comparison]] = {}
        with ExitStack() as stack:
            lock = locked(session.device, wait=request.wait, notify=display.note)
            stack.enter_context(lock)
            baseline_patch.remove_older(request)
            stack.callback(self._worker.end)
            for note in machine_notes(session.device):
                display.note(f"note: {note}")
            self._published = baselines.reference(request.baselines)
            if named is None and request.compare:
                named = baselines.find(request.baselines, environment.device_key)
            self.report = Report(
                started=started,
                environment=environment,
                selected=len(rows),
                again=tuple(request.command("run", "--compare")),
            )
            self._baseline: SpeedBaseline | None = None
            if named is not None:
                source, baseline = named
                by_pairs = (
                    [] if request.no_confirm else rows_by_pairs(baseline, environment)
                )
                self._baseline = SpeedBaseline(baseline, environment, by_pairs=by_pairs)
                known = {row.id for row in (*request.all_rows(), *every_row())}
                self.report = replace(
                    self.report,
                    baseline_source=f"{source}, recorded {baseline.recorded}",
                    environment_changes=baseline.environment.changes(environment),
                    stale=tuple(row.id for row in baseline.rows if row.id not in known),
                )
            needed_s = {}
            if self._baseline is not None:
                stored = self._baseline.rows.values()
                needed_s = {one.id: stored_s(one.measurement) for one in stored}
            needed_s |= dict.fromkeys(self._to_take_over, 0.0)
            display.plan_rows([(row, "") for row in rows], stored_s=needed_s)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End the worker process and unlock the device."""
        self._stack.close()

    def run_row(self, row: RowSpec) -> tuple[RowResult, Comparison]:
        """Measure the next row and judge it, which the display shows."""
        with self._display.next() as running:
            result = self._to_take_over.pop(row.id, None)
            taken_over, reason = result is not None, self._beyond_budget(running.task)
            if result is None and reason is not None:
                status = Status.NOT_RUN
                result = RowResult(id=row.id, row=row, status=status, reason=reason)
            if result is None:
                result = self._worker.run(row, running.step)
            comparison = self.add(result, running=running)
            ended = shown(result, comparison)
            running.end_row(*ended, status=result.status, taken_over=taken_over)
        return result, comparison

    def _beyond_budget(self, task: Task) -> str | None:
        """Why a row cannot finish within the time budget; None where it can."""
        budget_s = self._request.time_budget
        if budget_s is None:
            return None
        left_s = budget_s - (time.monotonic() - self._started_s)
        # A mean would start rows that take longer, so the longest row counts.
        ended, source = self._display.ended, "the longest row so far"
        needed_s = max((seconds for _, seconds in ended), default=0.0)
        if task.stored_s is not None:
            needed_s, source = expected_s(task, ended) or 0.0, "the baseline"
        if left_s > needed_s:
            return None
        return (
            f"time-budget: {max(left_s, 0):.0f} of {budget_s:g} s are left, and it"
            f" needs about {needed_s:.0f} s by {source}"
        )

    def add(
        self,
        result: RowResult,
        confirmation: Confirmation | None = None,
        *,
        running: Running,
    ) -> Comparison:
        """Judge a result and save it; if in doubt, judge it again when confirmed."""
        options, comparison = self._request, not_compared(result)
        if options.compare:
            comparison = compare(
                result,
                self._baseline,
                project=options.limits,
                unquantized=self._unquantized(result.row),
                missing_fails=options.on_missing_baseline == "fail",
                undecided_fails=options.on_undecided == "fail",
                confirmation=confirmation,
            )
        is_worse = comparison.verdict in {Verdict.SLOWER, Verdict.LARGER}
        is_final = confirmation is not None or not comparison.doubtful
        confirms = options.base is not None and not options.no_confirm
        # A revision that knows no closeness may have to confirm.
        confirming = replace(options, closeness=False)
        if is_worse and is_final and confirms:
            self._worker.end()
            text = f"it is {comparison.verdict.value}; pairs with {options.base} say"
            running.step(f"{NOTE}{text} whether {options.base} is so already")
            comparison = blame(
                result.row, comparison, options=confirming, progress=running.step
            )
        if comparison.verdict is Verdict.WORSE and is_final and options.base:
            unknown = f"pairs with {options.base} measure no closeness"
            reason = f"{comparison.reason}; {unknown}, so it may be so already"
            comparison = replace(comparison, reason=reason)
        if confirmation is not None or not comparison.doubtful or options.no_confirm:
            self._save(result, comparison)
            return comparison
        # What ends the run meanwhile leaves the row undecided, unless it is WORSE.
        reason = f"{comparison.reason}; the run ended before it was confirmed"
        saved = replace(comparison, reason=reason)
        if comparison.verdict is not Verdict.WORSE:
            fails = options.on_undecided == "fail"
            saved = replace(saved, verdict=Verdict.UNDECIDED, failed=fails)
        self._save(result, saved)
        assert self._baseline is not None, "a row is doubtful by its baseline"
        # Memory is compared with no other row's.
        other = self._unquantized(result.row) if comparison.suspicious else None
        self._worker.end()
        what = "looks larger; fresh processes decide"
        if comparison.suspicious:
            what = "may be slower; pairs or fresh processes decide"
        running.step(f"{NOTE}it {what}")
        running.repeat(CONFIRM_PROCESSES * (1 if other is None else 2))
        confirmation = confirm(
            result.row,
            comparison,
            self._baseline,
            unquantized=None if other is None else other.row,
            options=confirming,
            progress=running.step,
        )
        return self.add(result, confirmation, running=running)

    def _save(self, result: RowResult, comparison: Comparison) -> None:
        """Put a result into the report, in place of the same row's, and write it."""
        self._ended[result.id] = result, comparison
        results, comparisons = zip(*self._ended.values(), strict=True)
        bandwidth = self.report.device_bandwidth_gb_s
        if result.measurement is not None:
            bandwidth = result.measurement.device_bandwidth_gb_s
        self.report = replace(
            self.report,
            device_bandwidth_gb_s=bandwidth,
            results=results,
            comparisons=comparisons,
            reference={
                one.id: self._published[one.row.reference_key]
                for one in results
                if one.row.reference_key in self._published
            },
        )
        later = tuple(self._to_take_over.values())
        with_later = replace(
            self.report,
            results=(*self.report.results, *later),
            comparisons=(*self.report.comparisons, *map(not_compared, later)),
        )
        self.file.write(with_later)

    def _unquantized(self, row: RowSpec) -> RowResult | None:
        """The run's result of the unquantized row that `row` is compared with."""
        if self._baseline is None or Basis.RATIO not in self._baseline.bases(row):
            return None
        stored = self._baseline.unquantized.get(row.id)
        if stored is None or stored.id not in self._ended:
            return None
        result, _ = self._ended[stored.id]
        same = result.row.fingerprint == stored.fingerprint
        return result if same and result.measurement is not None else None

    def offer_patch(self) -> Offer:
        """Measure and write what `--baseline-patch` asks for, after the last row."""
        self._worker.end()
        return baseline_patch.offer(self.report, self._request, self._display)

    def missing_baselines(self) -> list[str]:
        """Lines of advice on baselines that are missing."""
        verdicts = [comparison.verdict for comparison in self.report.comparisons]
        missing = verdicts.count(Verdict.NO_BASELINE)
        if not missing:
            return []
        folder = self._request.baselines
        path = baselines.path_of(folder, self.report.environment.device_key)
        return [
            f"no baseline for this device ({path}): {missing} of"
            f" {counted(len(verdicts), 'row')}; record one with:",
            f"  {shlex.join(self._request.command('baseline', 'record'))}",
        ]


_OF_COMPARING = (
    *("base", "no_confirm", "on_missing_baseline", "on_undecided"),
    "baseline_patch",
)


def _check_comparing(request: RunRequest) -> None:
    """Raise UserError where an option is set that only a comparison would use."""
    request.check_text()
    for name in _OF_COMPARING:
        option = name.replace("_", "-")
        is_set = getattr(request, name) != OPTIONS[f"--{option}"]["default"]
        if is_set and not request.compare:
            reason = "it belongs to a comparison with the baseline: add --compare"
            raise UserError(f"{option}: {reason}")


def _finished_rows(
    rows: Sequence[RowSpec], request: RunRequest, environment: Environment
) -> dict[str, RowResult]:
    """The results of those `rows` that the run to continue has measured, by id.

    A row that ended otherwise runs again. Raises RecordError where its file is missing
    or damaged, or where that run had other code, another environment or other
    slowdowns: its rows would not belong to this run.
    """
    path = request.results
    if path is None or not request.resume:
        return {}
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
        if measurement.injected_slowdown != request.slowdown(row.id):
            raise RecordError(
                f"resume: {path} measured {row.id} with an inject-slowdown of"
                f" {measurement.injected_slowdown:.0%}"
            )
        # Its name and its limits are those of this run.
        finished[result.id] = replace(result, row=row)
    return finished
