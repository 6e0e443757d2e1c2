"""The rows of the published table: the A100, taken literally, and on this engine.

The sets `published` and `reference` hold the same rows, which share their
`RowSpec.reference_key`. A table of its own has them beside one another where a report
has a row of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tabulate import tabulate

from llama_perf.report.table import NOTHING, speed_up
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec

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
class Pair:
    """A row of the published table: its result in both sets, and the A100's."""

    literal: RowResult
    engine: RowResult
    then: Measurement | None

    @property
    def name(self) -> str:
        """The id of what is asked for, which says of no set how it is run."""
        return _asked(self.engine.row).id


def _asked(row: RowSpec) -> RowSpec:
    plain = {"kernels": "native", "attention": "decode", "device": "cuda"}
    return replace(row, capture=False, fused=False, **plain)  # type: ignore[arg-type]


def pairs(report: Report) -> list[Pair]:
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
        Pair(
            literal=literal[result.row.reference_key],
            engine=result,
            then=report.reference.get(result.id),
        )
        for result in report.results
        if result.id in engine_ids and result.row.reference_key in literal
    ]


def beside_table(report: Report, *, style: str = "simple") -> str | None:
    """The table, None where no row of both sets is in the report."""
    cells = [
        (
            each.name,
            NOTHING if each.then is None else f"{each.then.tok_s:.2f}",
            _speed(each.literal),
            speed_up(each.literal.measurement, each.then),
            _speed(each.engine),
            speed_up(each.engine.measurement, each.then),
            speed_up(each.engine.measurement, each.literal.measurement),
        )
        for each in pairs(report)
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
