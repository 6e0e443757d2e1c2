"""Several runs' results as one: the pieces of a table that was measured in shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama_perf.errors import RecordError
from llama_perf.gate.verdict import environment_changes
from llama_perf.results.records import Report, RowResult
from llama_perf.run.resume import read_report


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
        changed = environment_changes(
            first.environment, report.environment, commit=True
        )
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
