"""A run as it grows: results, verdicts, and the file that holds them after each row.

Shared by the pytest plugin and `llama-perf run`, so that both compare and keep the
same way. Runs nothing itself.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_perf.gate import baselines
from llama_perf.gate.confirmation import Trial
from llama_perf.gate.limits import limits_of
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.verdict import compare, not_compared
from llama_perf.results.baseline import Baseline
from llama_perf.results.environment import Environment
from llama_perf.results.run import Report, RowResult
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows import selection as row_sets
from llama_perf.rows.limit_overrides import ProjectLimits
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json, write_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """What a run is compared with; `baseline` is None where the device has none.

    `confirm` runs a suspicious row in fresh processes, the unquantized row (None: not
    needed) beside it; without it such a row stays UNDECIDED. `limits` are what the
    project sets.
    """

    baseline: Baseline | None
    source: str | None
    missing_fails: bool
    undecided_fails: bool = True
    confirm: Callable[[RowSpec, RowSpec | None], list[Trial]] | None = None
    limits: ProjectLimits = field(default_factory=ProjectLimits)


class Recorder:
    """Collects results, judges each, and rewrites `path` atomically after it.

    `selected` counts the rows that are to come; `known` are the rows of the set or
    file they were selected from, so that a baseline's others are not taken for stale.
    `again` is the command that runs the rows without pytest. `carried` are results that
    are to be added later: until then the file has them too, so that a run which stops
    again loses none of them.
    """

    def __init__(
        self,
        *,
        started: str,
        environment: Environment,
        selected: int,
        known: Sequence[RowSpec],
        against: Against | None,
        baselines_folder: Path,
        path: Path | None,
        again: Sequence[str] = (),
        carried: Mapping[str, RowResult] | None = None,
    ) -> None:
        self._carried = dict(carried or {})
        self._against = against
        self._baseline: SpeedBaseline | None = None
        self._reference = baselines.reference(baselines_folder)
        self._path = path
        self.report = Report(
            started=started,
            environment=environment,
            selected=selected,
            again=tuple(again),
        )
        if against is not None and against.baseline is not None:
            stored = against.baseline
            self._baseline = SpeedBaseline(stored, environment)
            self.report = replace(
                self.report,
                baseline_source=f"{against.source}, recorded {stored.recorded}",
                environment_changes=stored.environment.changes(environment),
                stale=_stale(stored, known),
            )

    def add(self, result: RowResult) -> Comparison:
        """Judge a row and keep it; one that is suspicious once more when confirmed."""
        self._carried.pop(result.id, None)
        comparison = self._judge(result)
        reference = dict(self.report.reference)
        if (then := self._reference.get(result.row.reference_key)) is not None:
            reference[result.id] = then
        bandwidth = self.report.device_bandwidth_gb_s
        if result.measurement is not None:
            bandwidth = result.measurement.device_bandwidth_gb_s
        self.report = replace(
            self.report,
            device_bandwidth_gb_s=bandwidth,
            results=(*self.report.results, result),
            comparisons=(*self.report.comparisons, comparison),
            reference=reference,
        )
        self._write()
        confirm = self._against.confirm if self._against is not None else None
        if comparison.doubtful and confirm is not None:
            # A peak is compared with no other row's.
            beside = self._unquantized(result.row) if comparison.suspicious else None
            trials = confirm(result.row, None if beside is None else beside.row)
            comparison = self._judge(result, trials)
            before = self.report.comparisons[:-1]
            self.report = replace(self.report, comparisons=(*before, comparison))
            self._write()
        return comparison

    def _write(self) -> None:
        if self._path is None:
            return
        carried = self._carried.values()
        report = replace(
            self.report,
            results=(*self.report.results, *carried),
            comparisons=(
                *self.report.comparisons,
                *(not_compared(result) for result in carried),
            ),
        )
        write_atomically(self._path, to_json(report))

    def _judge(
        self, result: RowResult, fresh: Sequence[Trial] | None = None
    ) -> Comparison:
        against = self._against
        if against is None:
            return not_compared(result)
        return compare(
            result,
            self._baseline,
            limits=limits_of(result.row, against.limits),
            unquantized=self._unquantized(result.row),
            missing_fails=against.missing_fails,
            undecided_fails=against.undecided_fails,
            fresh=fresh,
        )

    def _unquantized(self, row: RowSpec) -> RowResult | None:
        """What this run measured of the row that `row` is compared by, if it is."""
        baseline = self._baseline
        if baseline is None or Basis.RATIO not in baseline.bases(row):
            return None
        stored = baseline.unquantized_row(row.id)
        return next(
            (
                each
                for each in self.report.results
                if stored is not None
                and each.id == stored.id
                and each.row.fingerprint == stored.fingerprint
                and each.measurement is not None
            ),
            None,
        )

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(comparison.failed for comparison in self.report.comparisons)


def _stale(baseline: Baseline, known: Sequence[RowSpec]) -> tuple[str, ...]:
    ids = {row.id for row in known}
    for name in row_sets.set_names():
        ids |= {row.id for row in row_sets.load_set(name)}
    return tuple(row.id for row in baseline.rows if row.id not in ids)


def advice(report: Report, chosen: Chosen) -> list[str]:
    """What to do where a row has no baseline."""
    verdicts = [comparison.verdict for comparison in report.comparisons]
    missing = verdicts.count(Verdict.NO_BASELINE)
    if not missing:
        return []
    where = baselines.path_of(chosen.baselines_folder, report.environment.device_key)
    return [
        f"{missing} of {len(verdicts)} rows have no baseline for this device"
        f" ({where}); record one with:",
        f"  {shlex.join(chosen.command('baseline', 'record'))}",
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Which rows a run has and where things lie, as options of every command."""

    set_name: str | None
    rows_file: Path | None
    checkpoints: Path | None
    baselines_folder: Path
    default_folder: Path

    def command(self, *words: str) -> list[str]:
        """`llama-perf` with `words` and these options.

        An environment that is not activated has no `llama-perf` on the path: its
        Python stands in.
        """
        start = ["llama-perf"]
        if shutil.which("llama-perf") is None:
            python = Path(sys.executable)
            if python.is_relative_to(Path.cwd()):
                python = python.relative_to(Path.cwd())
            start = [str(python), "-m", "llama_perf"]
        found = [*start, *words]
        if self.rows_file is not None:
            found += ["--rows", str(self.rows_file)]
        else:
            found += ["--set", str(self.set_name)]
        if self.checkpoints is not None:
            found += ["--checkpoints", str(self.checkpoints)]
        if self.baselines_folder != self.default_folder:
            found += ["--baselines", str(self.baselines_folder)]
        return found
