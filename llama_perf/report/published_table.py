"""The table that compares this run with the published A100 figures, row by row.

The sets `published` and `reference` hold the same rows: the first as the A100 table
states them, the second on this project's engine. A row and its counterpart have the
same `RowSpec.reference_key`. The table has a line where a report holds both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tabulate import tabulate

from llama_perf.report.table import NOTHING, speed_up
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.rows.selection import load_set

TITLE = "the published rows: on the A100, with its settings here, on this engine here"
_HEADERS = (
    "row",
    "A100 tok/s",
    "published tok/s",
    "speed-up",
    "reference tok/s",
    "speed-up",
    "reference / published",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """A row of the published table: its result in both sets, and the A100's."""

    literal: RowResult
    engine: RowResult
    a100: Measurement | None

    @property
    def name(self) -> str:
        """The row's id without the fields in which the two sets differ."""
        asked = replace(
            self.engine.row,
            kernels="native",
            attention="decode",
            device="cuda",
            capture=False,
            fused=False,
        )
        return asked.id


def published_rows(report: Report) -> list[PublishedRow]:
    """The rows that the report has of both sets, in its order of `reference`."""
    literal_ids, engine_ids = (
        {row.id for row in load_set(name)} for name in ("published", "reference")
    )
    literal = {
        result.row.reference_key: result
        for result in report.results
        if result.id in literal_ids
    }
    return [
        PublishedRow(
            literal=literal[result.row.reference_key],
            engine=result,
            a100=report.reference.get(result.id),
        )
        for result in report.results
        if result.id in engine_ids and result.row.reference_key in literal
    ]


def published_table(report: Report, *, style: str = "simple") -> str | None:
    """The table, or None if the report has no row of both sets."""
    cells = [
        (
            row.name,
            NOTHING if row.a100 is None else f"{row.a100.tok_s:.2f}",
            _speed(row.literal),
            speed_up(row.literal.measurement, row.a100),
            _speed(row.engine),
            speed_up(row.engine.measurement, row.a100),
            speed_up(row.engine.measurement, row.literal.measurement),
        )
        for row in published_rows(report)
    ]
    if not cells:
        return None
    aligned = ["left", *["right"] * (len(_HEADERS) - 1)]
    return tabulate(
        cells, headers=_HEADERS, tablefmt=style, disable_numparse=True, colalign=aligned
    )


def _speed(result: RowResult) -> str:
    if result.measurement is None:
        return result.status.value
    return f"{result.measurement.tok_s:.2f}"
