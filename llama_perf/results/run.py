"""The results of a run: how each row ended, and the verdicts.

Reads them from files, those of several runs as one.
"""

from __future__ import annotations

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
from llama_perf.strict_json import from_json, record


class Status(Enum):
    """How a row ended."""

    MEASURED = "MEASURED"
    NOT_RUN = "NOT_RUN"
    INVALID = "INVALID"


@record
class RowResult:
    """One row and how it ended; `reason` is given unless it was measured."""

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
    """One run: what was measured and, where a baseline was given, the verdicts.

    `selected` counts the rows that were to run, `again` are the words of the command
    that runs them without pytest, `reference` holds the counterparts of
    the rows in the published A100 table, `stale` the ids that the baseline has and no
    set has any more.
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


def read_report(path: Path) -> Report:
    """Read a run's results; raises RecordError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    return from_json(Report, text, source=str(path))


def read_merged(paths: Sequence[Path]) -> Report:
    """The results in `paths` as one report; raises RecordError.

    They must be of one environment and one commit. Of a row that stands in several the
    first result with a measurement is taken, else the last. What the runs had selected
    and did not get to stays counted as missing.
    """
    reports = [read_report(path) for path in paths]
    first = reports[0]
    if len(reports) == 1:
        return first
    for path, report in zip(paths, reports, strict=True):
        changed = first.environment.changes(report.environment, commit=True)
        if changed:
            raise RecordError(
                f"{path}: it does not belong to {paths[0]}: {'; '.join(changed)}"
            )
    results: dict[str, RowResult] = {}
    for report in reports:
        for result in report.results:
            known = results.get(result.id)
            if known is None or known.measurement is None:
                results[result.id] = result
    missed = sum(max(each.selected - len(each.results), 0) for each in reports)
    return replace(
        first,
        selected=len(results) + missed,
        results=tuple(results.values()),
        comparisons=tuple(
            {
                each.id: each for report in reports for each in report.comparisons
            }.values()
        ),
        reference={
            row_id: measurement
            for report in reports
            for row_id, measurement in report.reference.items()
        },
        stale=tuple(dict.fromkeys(row for report in reports for row in report.stale)),
    )
