"""The table that compares this run with the published A100 figures, row by row.

The sets `published` and `reference` hold the same rows: the first as the A100 table
states them, the second on this project's engine. A row and its counterpart have the
same `RowSpec.reference_key`. The table has a line where a report holds both.
"""

from __future__ import annotations

from dataclasses import replace

from tabulate import tabulate

from llama_perf.report.table import NOTHING, speed_up
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


def published_rows(report: Report) -> list[tuple[RowResult, RowResult]]:
    """(result as published, result on this engine) of the rows that it has of both."""
    published, reference = (
        {row.id for row in load_set(name)} for name in ("published", "reference")
    )
    literal = {
        result.row.reference_key: result
        for result in report.results
        if result.id in published
    }
    return [
        (literal[key], result)
        for result in report.results
        if result.id in reference and (key := result.row.reference_key) in literal
    ]


def published_table(report: Report, *, style: str = "simple") -> str | None:
    """The table, or None if the report has no row of both sets."""
    lines = []
    for literal, engine in published_rows(report):
        # The id without the fields in which the two sets differ.
        both = replace(engine.row, kernels="native", attention="decode")
        both = replace(both, device="cuda", capture=False, fused=False)
        a100 = report.reference.get(engine.id)
        lines.append(
            (
                both.id,
                NOTHING if a100 is None else f"{a100.tok_s:.2f}",
                _speed(literal),
                speed_up(literal.measurement, a100),
                _speed(engine),
                speed_up(engine.measurement, a100),
                speed_up(engine.measurement, literal.measurement),
            )
        )
    if not lines:
        return None
    aligned = ["left", *["right"] * (len(_HEADERS) - 1)]
    return tabulate(
        lines, headers=_HEADERS, tablefmt=style, disable_numparse=True, colalign=aligned
    )


def _speed(result: RowResult) -> str:
    if result.measurement is None:
        return result.status.value
    return f"{result.measurement.tok_s:.2f}"
