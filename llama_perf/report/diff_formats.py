"""A comparison of recordings as text, markdown, CSV, JSON and HTML."""

import csv
import io
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from llama_perf.report import report_format
from llama_perf.report.columns import ALL, Layout
from llama_perf.report.diff_table import (
    columns,
    fitting,
    letters,
    names_of,
    notes,
    other_headers,
    others,
    reasons,
    sides,
    summary,
)
from llama_perf.report.table import in_cells, table_of
from llama_perf.results.diff import Diff, DiffMetric, DiffRow
from llama_perf.strict_json import to_json, to_line

report_format("json", ".json", of=Diff)(to_json)


@report_format("text", ".txt", of=Diff, has_columns=True)
def as_text(diff: Diff, layout: Layout = ALL) -> str:
    """The tables, the reasons, the notes and the summary line.

    The layout names the metrics that are shown whether or not they changed.
    """
    names, common = names_of(diff)
    lines = [f"{letter}: {words}" for letter, words in sides(diff)]
    lines += [f"every row: {common}"] if common else []
    lines += [*_tables(diff, names, "simple", layout), ""]
    for row_id, verdict, reason, why in reasons(diff):
        lines.append(f"{verdict} {row_id}: {reason}")
        lines += [f"  {line}" for line in why]
    return "\n".join([*lines, *notes(diff), summary(diff)]) + "\n"


@report_format("markdown", ".md", of=Diff, has_columns=True)
def as_markdown(diff: Diff, layout: Layout = ALL) -> str:
    """The same as GitHub shows it."""
    names, common = names_of(diff)
    lines = [f"### llama-perf: {summary(diff)}", ""]
    lines += [f"- {letter}: `{words}`" for letter, words in sides(diff)]
    lines += ["", *([f"Every row: `{common}`", ""] if common else [])]
    lines += [*_tables(diff, names, "github", Layout(layout.names)), ""]
    for row_id, verdict, reason, why in reasons(diff):
        lines.append(f"- **{verdict}** `{row_id}`: {reason}")
        lines += [f"  - {line}" for line in why]
    return "\n".join([*lines, *(f"- {note}" for note in notes(diff))]) + "\n"


def _tables(
    diff: Diff, names: Sequence[str], style: str, layout: Layout
) -> Iterator[str]:
    """The table of speed and memory, and that of the other metrics if it has lines.

    A line names the columns that do not fit.
    """
    if not diff.rows:
        return
    every = list(columns(diff, names))
    chosen = fitting(every, layout.width)
    yield table_of(chosen, style, layout.width)
    if left_out := [column.header for column in every if column not in chosen]:
        yield f"not in {layout.width} characters a line: {', '.join(left_out)}"
    if lines := [line.cells() for line in others(diff, names, layout.names or ())]:
        headers = other_headers(diff)
        yield "\n" + tabulate(
            in_cells(lines, style),
            headers=headers,
            tablefmt=style,
            disable_numparse=True,
            colalign=["left", "left", *["right"] * (len(headers) - 2)],
        )


@report_format("csv", ".csv", of=Diff)
def as_csv(diff: Diff) -> str:
    """One line for each row and metric; an empty cell for what is not known."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    first, *rest = letters(diff)
    values = [first, *(name for one in rest for name in (one, f"change {one}"))]
    head = ("id", "name", "verdict", "failed", "reason", "metric")
    lines.writerow([*head, *values, "limit", "beyond", "worse"])
    for row in diff.rows:
        judged = row.comparison
        about: tuple[object, ...] = (row.id, row.row.name, None, None, None)
        if judged is not None:
            words = (judged.verdict.value, judged.failed, judged.reason)
            about = (row.id, row.row.name, *words)
        for found in (*row.metrics, *_ratios(row)):
            then, *others_ = found.values
            pairs = zip(others_, found.changes[1:], strict=True)
            figures = [then, *(cell for pair in pairs for cell in pair)]
            judgement = (found.limit, found.beyond, found.worse)
            lines.writerow([*about, found.metric, *figures, *judgement])
    return text.getvalue()


def _ratios(row: DiffRow) -> Iterator[DiffMetric]:
    """The ratios of speed by which the last recording was judged."""
    known = {metric.metric for metric in row.metrics}
    middle = (None,) * (len(row.statuses) - 2)
    for change in row.comparison.changes if row.comparison else ():
        if change.metric not in known:
            yield DiffMetric(
                metric=change.metric,
                values=(change.baseline, *middle, change.current),
                changes=(None, *middle, change.change),
                limit=change.limit,
                beyond=change.limit is not None and abs(change.change) > change.limit,
                worse=change.worse,
            )


@report_format("jsonl", ".jsonl", of=Diff)
def as_jsonl(diff: Diff) -> str:
    """One line of JSON for each row, as the JSON document has it."""
    return "".join(f"{to_line(row)}\n" for row in diff.rows)


@report_format(
    "html", ".html", of=Diff, has_columns=True, needs=("altair", "vl_convert")
)
def as_html(diff: Diff, layout: Layout = ALL) -> str:
    """The comparison as one page that needs no network."""
    from llama_perf.report.html.diff import diff_page

    return diff_page(diff, layout.names or ())
