"""A run of closeness without speed: each quantized row beside its unquantized twin.

`llama-perf closeness` and `pytest tests/correctness --set NAME` both make a
`ClosenessRun` and call `run_row` for each row.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from llama_perf.devices.device import run_device
from llama_perf.errors import RecordError, UserError
from llama_perf.files import read_bytes
from llama_perf.gate.closeness import compare_closeness
from llama_perf.gate.verdict import not_compared
from llama_perf.measure.environment import collect, machine_notes, of_rows
from llama_perf.report.closeness_table import shown
from llama_perf.results import baselines
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.closeness_report import (
    ClosenessReport,
    ClosenessResult,
    added,
    check_addable,
    read_closeness,
)
from llama_perf.results.run import Comparison, Environment, read_report
from llama_perf.rows.selection import quantized
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.lock import locked
from llama_perf.run.options import RunRequest
from llama_perf.run.results_file import ResultsFile
from llama_perf.run.row_worker import RowWorker
from llama_perf.words import counted


def _named(text: Path | None) -> str:
    """A text's name, and a hash of what is in its file."""
    if text is None:
        return "built-in"
    content = read_bytes(text, error=UserError)
    return f"{text.name} {hashlib.sha256(content).hexdigest()[:8]}"


class ClosenessRun:
    """Compares `rows` on a device of this machine, which it locks until it is closed.

    With `compare` each row is judged beside this device's baseline. Rows of which
    nothing is quantized are left out. `report` has the results, and
    `file` has them after each row. With `add_to`, the results of an earlier run get
    the figures of the same rows when this run is closed.

    Raises UserError where another run has the device or nothing is quantized,
    RecordError where a file is damaged or of another run.
    """

    def __init__(
        self,
        rows: Sequence[RowSpec],
        request: RunRequest,
        *,
        add_to: Path | None = None,
        display: Display,
    ) -> None:
        self.rows = quantized(rows)
        self._request, self._display, self._add_to = request, display, add_to
        self.file, self.added_to = ResultsFile(request.results), ResultsFile(add_to)
        self.added = ""
        """In words what was added to the results of an earlier run."""
        devices = {row.device for row in self.rows}
        device = run_device(devices)
        environment = of_rows(collect(device), rows)
        self.report = ClosenessReport(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment,
            text=_named(request.text),
            tokens=request.tokens,
            selected=len(self.rows),
            left_out=len(rows) - len(self.rows),
        )
        self._stored: dict[str, BaselineRow] = {}
        if request.compare and (
            found := baselines.find(request.baselines, environment.device_key)
        ):
            source, baseline = found
            self._stored = {row.id: row for row in baseline.rows}
            words = f"{source}, recorded {baseline.recorded}"
            self.report = replace(self.report, baseline_source=words)
        if add_to is not None:
            check_addable(read_report(add_to), environment, source=str(add_to))
        self._to_take_over = self._finished(environment)
        self._worker = RowWorker(request, devices)
        with ExitStack() as stack:
            lock = locked(device, wait=request.wait, notify=display.note)
            stack.enter_context(lock)
            stack.callback(self._worker.end)
            for note in machine_notes(device):
                display.note(f"note: {note}")
            if count := self.report.left_out:
                display.note(
                    f"left out: {counted(count, 'row')} with nothing quantized"
                )
            display.plan_rows(
                [(row, "") for row in self.rows],
                stored_s=dict.fromkeys(self._to_take_over, 0.0),
            )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End the worker process, unlock the device, add to what an earlier run has."""
        self._stack.close()
        if self._add_to is not None and self.report.results:
            earlier, self.added = added(read_report(self._add_to), self.report)
            self.added_to.write(earlier)

    def run_row(self, row: RowSpec) -> tuple[ClosenessResult, Comparison]:
        """Compare the next row, which the display shows."""
        with self._display.next() as running:
            result = self._to_take_over.pop(row.id, None)
            taken_over = result is not None
            if result is None:
                result = self._worker.closeness(row, running.step)
            comparison = self._judged(result)
            self.report = replace(
                self.report,
                results=(*self.report.results, result),
                comparisons=(*self.report.comparisons, comparison),
            )
            later = tuple(self._to_take_over.values())
            self.file.write(
                replace(self.report, results=(*self.report.results, *later))
            )
            ended = shown(result, comparison)
            running.end_row(*ended, status=result.status, taken_over=taken_over)
        return result, comparison

    def _judged(self, result: ClosenessResult) -> Comparison:
        request, comparison = self._request, not_compared(result.as_row_result)
        if not request.compare:
            return comparison
        stored = self._stored.get(result.id)
        if result.closeness is None:
            # A row that was compared before may not vanish in silence.
            is_known = stored is not None and stored.measurement.closeness is not None
            return replace(comparison, failed=comparison.failed or is_known)
        return compare_closeness(
            result.row,
            result.closeness,
            stored,
            weights=result.weights,
            project=request.limits,
            missing_fails=request.on_missing_baseline == "fail",
        )

    def _finished(self, environment: Environment) -> dict[str, ClosenessResult]:
        """The rows that the run to continue has compared, by id; raises RecordError."""
        path = self._request.results
        if path is None or not self._request.resume:
            return {}
        earlier, report = read_closeness(path), self.report
        changed = [*earlier.environment.changes(environment, commit=True)]
        for name in ("text", "tokens"):
            then, now = getattr(earlier, name), getattr(report, name)
            if then != now:
                changed.append(f"{name}: {then} -> {now}")
        if changed:
            raise RecordError(f"resume: {path} is of another run: {'; '.join(changed)}")
        wanted = {row.id: row for row in self.rows}
        return {
            result.id: replace(result, row=wanted[result.id])
            for result in earlier.results
            if result.closeness is not None
            and result.id in wanted
            and wanted[result.id].fingerprint == result.row.fingerprint
        }
