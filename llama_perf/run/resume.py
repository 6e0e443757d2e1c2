"""What of a run that stopped can be taken over by one that continues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_perf.errors import RecordError
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, read_report
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunOptions


def finished_rows(
    path: Path,
    rows: Sequence[RowSpec],
    *,
    options: RunOptions,
    environment: Environment,
) -> Mapping[str, RowResult]:
    """The results in `path` of those `rows` that were measured, by id.

    Rows that ended otherwise are run again. Raises RecordError where the file is
    missing or damaged, or where its run was of other code, another environment or
    other slowdowns: two halves that do not belong together are no run.
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
