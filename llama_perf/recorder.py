"""A run as it grows: results, verdicts, and the file that holds them after each row.

Shared by the pytest plugin and `llama-perf run`, so that both compare and keep the
same way. Runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llama_perf import baseline as baselines
from llama_perf import rows as row_sets
from llama_perf.codec import to_json, write_atomically
from llama_perf.compare import compare, environment_changes, not_compared
from llama_perf.records import (
    Baseline,
    Comparison,
    Environment,
    Report,
    RowResult,
)
from llama_perf.spec import RowSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """What a run is compared with; `baseline` is None where the device has none."""

    baseline: Baseline | None
    source: str | None
    missing_fails: bool


class Recorder:
    """Collects results, judges each, and rewrites `path` atomically after it."""

    def __init__(
        self,
        *,
        started: str,
        environment: Environment,
        rows: Sequence[RowSpec],
        against: Against | None,
        baselines_folder: Path,
        path: Path | None,
    ) -> None:
        self._against = against
        self._reference = baselines.reference(baselines_folder)
        self._path = path
        self.report = Report(started=started, environment=environment)
        if against is not None and against.baseline is not None:
            stored = against.baseline
            self.report = replace(
                self.report,
                baseline_source=f"{against.source}, recorded {stored.recorded}",
                environment_changes=environment_changes(
                    stored.environment, environment
                ),
                stale=_stale(stored, rows),
            )

    def add(self, result: RowResult) -> Comparison:
        """Judge a row and keep it."""
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
        if self._path is not None:
            write_atomically(self._path, to_json(self.report))
        return comparison

    def _judge(self, result: RowResult) -> Comparison:
        against = self._against
        if against is None:
            return not_compared(result)
        stored = against.baseline
        key = self.report.environment.device_key
        return compare(
            result,
            stored,
            same_device=stored is None or stored.environment.device_key == key,
            missing_fails=against.missing_fails,
        )

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(comparison.failed for comparison in self.report.comparisons)


def _stale(baseline: Baseline, rows: Sequence[RowSpec]) -> tuple[str, ...]:
    known = {row.id for row in rows}
    for name in row_sets.set_names():
        known |= {row.id for row in row_sets.load_set(name)}
    return tuple(row.id for row in baseline.rows if row.id not in known)


def record_command(set_name: str | None, file: Path | None) -> str:
    """The command that records a baseline for the rows of a run."""
    chosen = f"--rows {file}" if file is not None else f"--set {set_name}"
    return f"llama-perf baseline record {chosen}"
