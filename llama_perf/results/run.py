"""The results of a run: how its rows ended, and the verdicts.

Reads them from files, and merges those of several runs.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

from llama_perf.errors import RecordError
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.verdict import Comparison
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import read_json, record


class Status(Enum):
    """How a row ended."""

    MEASURED = "MEASURED"
    NOT_RUN = "NOT_RUN"
    INVALID = "INVALID"


@record
class RowResult:
    """One row and how it ended; `reason` says why it was not measured."""

    id: str
    row: RowSpec
    status: Status
    reason: str | None = None
    measurement: Measurement | None = None

    @property
    def summary(self) -> str:
        """How it ended, in a few words."""
        if self.measurement is None:
            return f"{self.status.value}: {self.reason}"
        return f"{self.measurement.tok_s:.2f} tok/s"


@record
class Report:
    """The results of one run and, if it was compared with a baseline, the verdicts.

    `selected` counts the rows that were to run; `again` are the words of the command
    that runs them without pytest. `reference` has, by row id, the figures of the
    published A100 table. `stale` are ids in the baseline that no set has any more.
    """

    kind: Literal["llama-perf report"] = "llama-perf report"
    schema_version: Literal[1] = 1
    started: str
    environment: Environment
    selected: int = 0
    again: tuple[str, ...] = ()
    device_bandwidth_gb_s: float | None = None
    results: tuple[RowResult, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    reference: dict[str, Measurement] = field(default_factory=dict)
    baseline_source: str | None = None
    environment_changes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(comparison.failed for comparison in self.comparisons)

    @property
    def judged(self) -> list[tuple[RowResult, Comparison | None]]:
        """Each result with its verdict, None where there is none yet."""
        verdicts = {comparison.id: comparison for comparison in self.comparisons}
        return [(result, verdicts.get(result.id)) for result in self.results]


def read_merged(paths: Sequence[Path]) -> Report:
    """The results in `paths` as one report; raises RecordError.

    They must be of one environment and one commit. A row that is in several files is
    taken from the first in which it was measured, else from the last. Rows that the
    runs had selected and did not reach stay counted as missing.
    """
    reports = [read_json(Report, path) for path in paths]
    first = reports[0]
    if len(reports) == 1:
        return first
    results: dict[str, RowResult] = {}
    comparisons: dict[str, Comparison] = {}
    reference: dict[str, Measurement] = {}
    missing = 0
    for path, report in zip(paths, reports, strict=True):
        if changes := first.environment.changes(report.environment, commit=True):
            raise RecordError(
                f"{path}: it does not belong to {paths[0]}: {'; '.join(changes)}"
            )
        for result in report.results:
            known = results.get(result.id)
            if known is None or known.measurement is None:
                results[result.id] = result
        comparisons |= {comparison.id: comparison for comparison in report.comparisons}
        reference |= report.reference
        missing += max(report.selected - len(report.results), 0)
    return replace(
        first,
        selected=len(results) + missing,
        results=tuple(results.values()),
        comparisons=tuple(comparisons.values()),
        reference=reference,
        stale=tuple(dict.fromkeys(row for report in reports for row in report.stale)),
    )
