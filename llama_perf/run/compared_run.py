"""A run and its verdicts: measure a row, judge it, confirm it where in doubt, save it.

The pytest plugin and `llama-perf run` both call `start_run` and then `run_row` for each
row. Knows nothing of either command line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from llama_perf.files import write_atomically
from llama_perf.gate import baselines
from llama_perf.gate.judgements import Trial
from llama_perf.gate.limits import limits_of
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.verdict import compare, not_compared
from llama_perf.measure.timing import Progress
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import Report, RowResult
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.request import RunRequest
from llama_perf.run.runner import Runner
from llama_perf.strict_json import to_json


def start_run(
    rows: Sequence[RowSpec],
    request: RunRequest,
    *,
    named: tuple[str, Baseline] | None = None,
    progress: Progress = lambda _text: None,
) -> ComparedRun:
    """Lock the device, describe the machine and find what to compare with.

    `named` is a baseline that the user named, and where it comes from; without it a
    comparison takes the device's own from the folder of baselines. Raises UserError:
    nothing was measured yet.
    """
    runner = Runner(rows, options=request.run, progress=progress)
    try:
        return ComparedRun(runner, request, named=named, progress=progress)
    except BaseException:
        runner.close()
        raise


class ComparedRun:
    """The results and verdicts of a run, which `request.results` has after each row.

    That file also has the rows of a continued run that are still to be taken over, so
    that a run which stops again loses none of them.
    """

    def __init__(
        self,
        runner: Runner,
        request: RunRequest,
        *,
        named: tuple[str, Baseline] | None = None,
        progress: Progress = lambda _text: None,
    ) -> None:
        self._runner = runner
        self._request = request
        self._progress = progress
        self._to_take_over = dict(runner.finished)
        self._published = baselines.reference(request.compare.baselines)
        if named is None and request.compare.asked:
            device_key = runner.environment.device_key
            stored = baselines.find(request.compare.baselines, device_key)
            named = None if stored is None else (str(stored[0]), stored[1])
        self._baseline: SpeedBaseline | None = None
        runner.expect(None if named is None else named[1])
        self.report = Report(
            started=runner.started,
            environment=runner.environment,
            selected=len(runner.rows),
            again=tuple(request.command("run", "--compare")),
        )
        if named is not None:
            source, baseline = named
            self._baseline = SpeedBaseline(baseline, runner.environment)
            self.report = replace(
                self.report,
                baseline_source=f"{source}, recorded {baseline.recorded}",
                environment_changes=baseline.environment.changes(runner.environment),
                stale=_stale(baseline, request.selection.all_rows()),
            )

    @property
    def rows(self) -> Sequence[RowSpec]:
        """The rows of the run, in their order."""
        return self._runner.rows

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(comparison.failed for comparison in self.report.comparisons)

    def run_row(self, row: RowSpec) -> tuple[RowResult, Comparison]:
        """Measure the next row and judge it; reports its progress."""
        number = len(self.report.results) + 1
        self._progress(f"[{number}/{len(self.rows)}] {row.id}: ")
        result = self._runner.run_row(row, progress=self._show_step)
        comparison = self.add(result)
        self._progress(result.summary)
        return result, comparison

    def _show_step(self, text: str) -> None:
        self._progress(f"{text}, ")

    def add(self, result: RowResult) -> Comparison:
        """Judge a result and save it; judge it again by fresh processes if in doubt."""
        self._to_take_over.pop(result.id, None)
        comparison = self._judge(result)
        self._save(result, comparison)
        if comparison.doubtful and self._request.compare.confirm:
            unquantized = self._unquantized(result.row)
            # Memory is compared with no other row's, so only the row runs again.
            if not comparison.suspicious:
                unquantized = None
            trials = self._runner.confirm(
                result.row,
                None if unquantized is None else unquantized.row,
                progress=self._show_step,
            )
            comparison = self._judge(result, trials)
            self._save(result, comparison)
        return comparison

    def _save(self, result: RowResult, comparison: Comparison) -> None:
        """Put a result into the report, in place of the same row's, and write it."""
        results = {before.id: before for before in self.report.results}
        verdicts = {before.id: before for before in self.report.comparisons}
        reference = dict(self.report.reference)
        published = self._published.get(result.row.reference_key)
        if published is not None:
            reference[result.id] = published
        bandwidth = self.report.device_bandwidth_gb_s
        if result.measurement is not None:
            bandwidth = result.measurement.device_bandwidth_gb_s
        self.report = replace(
            self.report,
            device_bandwidth_gb_s=bandwidth,
            results=tuple((results | {result.id: result}).values()),
            comparisons=tuple((verdicts | {result.id: comparison}).values()),
            reference=reference,
        )
        if self._request.results is not None:
            later = tuple(self._to_take_over.values())
            with_later = replace(
                self.report,
                results=(*self.report.results, *later),
                comparisons=(*self.report.comparisons, *map(not_compared, later)),
            )
            write_atomically(self._request.results, to_json(with_later))

    def _judge(
        self, result: RowResult, trials: Sequence[Trial] | None = None
    ) -> Comparison:
        options = self._request.compare
        if not options.asked:
            return not_compared(result)
        return compare(
            result,
            self._baseline,
            limits=limits_of(result.row, options.limits),
            unquantized=self._unquantized(result.row),
            missing_fails=options.missing_fails,
            undecided_fails=options.undecided_fails,
            fresh=trials,
        )

    def _unquantized(self, row: RowSpec) -> RowResult | None:
        """The run's result of the unquantized row that `row` is compared with."""
        baseline = self._baseline
        if baseline is None or Basis.RATIO not in baseline.bases(row):
            return None
        stored = baseline.unquantized_row(row.id)
        for result in self.report.results:
            if (
                stored is not None
                and result.id == stored.id
                and result.row.fingerprint == stored.fingerprint
                and result.measurement is not None
            ):
                return result
        return None

    def write_report(self) -> list[str]:
        """Write the report's files; returns lines of advice on missing baselines."""
        self._request.write_reports(self.report)
        verdicts = [comparison.verdict for comparison in self.report.comparisons]
        missing = verdicts.count(Verdict.NO_BASELINE)
        if not missing:
            return []
        folder = self._request.compare.baselines
        path = baselines.path_of(folder, self.report.environment.device_key)
        return [
            f"{missing} of {len(verdicts)} rows have no baseline for this device"
            f" ({path}); record one with:",
            f"  {shlex.join(self._request.command('baseline', 'record'))}",
        ]

    def close(self) -> None:
        """End the worker process and unlock the device."""
        self._runner.close()


def _stale(baseline: Baseline, known: Sequence[RowSpec]) -> tuple[str, ...]:
    """The ids in `baseline` of rows that are in no set and not among `known`."""
    ids = {row.id for row in known}
    for name in selection.set_names():
        ids |= {row.id for row in selection.load_set(name)}
    return tuple(row.id for row in baseline.rows if row.id not in ids)
