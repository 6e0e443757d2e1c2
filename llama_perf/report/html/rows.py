"""The rows of a run as a page shows them: what they are called, and their verdicts.

One `Row` serves the list of verdicts, the table and a row's details.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama_perf.metrics import METRICS
from llama_perf.report.closeness_notes import in_words
from llama_perf.report.columns import (
    DISTURBED,
    NAMES,
    NOTHING,
    Column,
    Layout,
    columns,
    outcome,
)
from llama_perf.report.html.page import Section, json_in_html, render
from llama_perf.report.html.row_charts import row_charts
from llama_perf.report.html.row_data import row_data
from llama_perf.report.html.row_texts import row_texts
from llama_perf.report.notes import again
from llama_perf.report.ranks_notes import in_words as of_ranks
from llama_perf.report.table import row_names
from llama_perf.results.disturbance import disturbance
from llama_perf.results.run import Comparison, Report, RowResult, Verdict

_GOOD = {Verdict.FASTER.value, Verdict.SMALLER.value}
_DOUBTFUL = {
    *(Verdict.UNDECIDED.value, Verdict.ALREADY_SLOWER.value),
    *(Verdict.ALREADY_LARGER.value, Verdict.INVALID.value, Verdict.INCOMPARABLE.value),
}
_METRICS = {metric.title: metric for metric in METRICS}
# What the changes of two columns, which have one header, are changes of.
_CHANGE_OF = {
    name: title
    for metric in METRICS
    if metric.column is not None and metric.column.change is not None
    for name, title in [metric.column.change]
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row, what it is called beside the others, and the verdict on it."""

    name: str
    result: RowResult
    comparison: Comparison | None

    @property
    def id(self) -> str:
        """The row's id, by which the page knows it."""
        return self.result.id

    @property
    def failed(self) -> bool:
        """Whether it fails the run."""
        return self.comparison is not None and self.comparison.failed

    @property
    def verdict(self) -> str:
        """The verdict, or how it ended, in one word."""
        return outcome(self.result, self.comparison)

    @property
    def kind(self) -> str:
        """The class of its badge; the word and a mark say the same without colour."""
        if self.failed:
            return "bad"
        if self.verdict in _GOOD:
            return "good"
        return "doubt" if self.verdict in _DOUBTFUL else "plain"

    @property
    def reason(self) -> str | None:
        """Why the verdict is what it is, or why there are no figures."""
        return self.comparison.reason if self.comparison else self.result.reason

    @property
    def disturbed(self) -> str:
        """By what it was disturbed; empty where it was by nothing."""
        return disturbance(self.result, self.comparison)

    @property
    def rank(self) -> int:
        """Where its verdict sorts: failed rows first, then better ones."""
        order = ["bad", "doubt", "good", "plain"]
        verdicts = [verdict.value for verdict in Verdict] + ["MEASURED"]
        return order.index(self.kind) * len(verdicts) + verdicts.index(self.verdict)

    @property
    def model(self) -> str:
        """The name of its model, or the path of one."""
        return self.result.row.model

    @property
    def scheme(self) -> str:
        """The name of its scheme."""
        return self.result.row.scheme


def rows_of(report: Report) -> tuple[list[Row], str]:
    """The rows in the report's order, and the part of the id that all share."""
    names, common = row_names([result.row for result in report.results])
    judged = zip(names, report.judged, strict=True)
    rows = [
        Row(name=name, result=result, comparison=comparison)
        for name, (result, comparison) in judged
    ]
    return rows, common


def rows_section(
    report: Report, rows: Sequence[Row], common: str, layout: Layout
) -> Section:
    """The table of all rows, its filters, and what a row's details need."""
    chosen = _chosen(report, rows, layout)
    filters = {
        "model": sorted({row.model for row in rows}),
        "scheme": sorted({row.scheme for row in rows}),
        "kernels": sorted({row.result.row.kernels for row in rows}),
        "verdict": [row.verdict for row in sorted(rows, key=lambda row: row.rank)],
    }
    charts = row_charts()
    html = render(
        "rows.html.j2",
        common=common,
        columns=chosen,
        change_of=_CHANGE_OF,
        rows=[(row, list(_cells(chosen, number))) for number, row in enumerate(rows)],
        filters={
            name: list(dict.fromkeys(values))
            for name, values in filters.items()
            if len(set(values)) > 1
        },
        some_failed=any(row.failed for row in rows),
        some_disturbed=any(row.disturbed for row in rows),
        mark=DISTURBED,
        row_charts=charts,
        details=json_in_html({row.id: _details(report, row) for row in rows}),
    )
    return Section(title="Rows", html=html, on_demand=charts)


def _chosen(report: Report, rows: Sequence[Row], layout: Layout) -> list[Column]:
    """The columns beside the name: those asked for, or all that hold anything.

    The verdict comes first of all, since the last ones may lie beyond the view.
    """
    names = [row.name for row in rows]
    if layout.names is not None:
        return columns(report, names, layout)[1:]
    known = columns(report, names, Layout(NAMES))[1:]
    chosen = [
        column for column in known if any(cell != NOTHING for cell in column.cells)
    ]
    return sorted(chosen, key=lambda column: column.name != "verdict")


def _cells(
    chosen: Sequence[Column], number: int
) -> Iterator[tuple[Column, str, float | None]]:
    """(column, text, value that it sorts by) of one row."""
    for column in chosen:
        value = column.values[number] if column.values else None
        yield column, column.cells[number], value


def _closeness(result: RowResult) -> str:
    """How close the row comes to its twin, in words; empty where it is not known."""
    closeness = None if result.measurement is None else result.measurement.closeness
    return "" if closeness is None else in_words(closeness)


def _ranks(result: RowResult) -> list[str]:
    """What its ranks measured, in lines; none where it has one."""
    ranks = None if result.measurement is None else result.measurement.ranks
    return [] if ranks is None else of_ranks(ranks)


def _details(report: Report, row: Row) -> dict[str, object]:
    changes = row.comparison.changes if row.comparison else ()
    data = row_data(row.result, row.comparison)
    texts = row_texts(data)
    known = {
        "charts": {
            name: {"values": values, "text": texts[name]}
            for name, values in data.items()
            if values
        },
        "verdict": row.verdict,
        "kind": row.kind,
        "reason": row.reason,
        "disturbed": row.disturbed,
        "closeness": _closeness(row.result),
        "ranks": _ranks(row.result),
        "why": list(row.comparison.why) if row.comparison else [],
        "command": again(report, row.id),
        "changes": [
            [
                change.metric,
                metric.shown(change.baseline),
                metric.shown(change.current),
                metric.shown_change(change.change),
                "" if change.limit is None else metric.shown_limit(change.limit),
                "worse" if change.worse else "",
            ]
            for change in changes
            if (metric := _METRICS.get(change.metric)) is not None
        ],
    }
    return {name: value for name, value in known.items() if value}
