"""A report as text for a terminal, as markdown for a CI summary, as JSON."""

from __future__ import annotations

from collections.abc import Callable

from tabulate import tabulate

from llama_perf.report.beside import beside_table
from llama_perf.report.choices import chosen_in
from llama_perf.report.table import build_table, notes, reasons, summary, why
from llama_perf.results.run import Report
from llama_perf.strict_json import to_json

_BESIDE = "the published table: on the A100, taken literally here, on this engine here"


def as_text(report: Report) -> str:
    """The table, the reasons, the notes and the summary line."""
    table = build_table(report)
    lines = [f"every row: {table.caption}"] if table.caption else []
    lines.append(_grid(report, "simple"))
    lines.append("")
    if (beside := beside_table(report)) is not None:
        lines += [f"{_BESIDE}:", beside, ""]
    for row_id, verdict, reason in reasons(report):
        lines.append(f"{verdict} {row_id}: {reason}")
        lines += [f"  {each}" for each in why(report, row_id)]
    for row_id, chosen in chosen_in(report):
        lines += [f"autoquant chose for {row_id}:", chosen, ""]
    lines += notes(report)
    lines.append(summary(report))
    return "\n".join(lines) + "\n"


def as_markdown(report: Report) -> str:
    """The same as GitHub shows it."""
    table = build_table(report)
    lines = [f"### llama-perf: {summary(report)}", ""]
    if table.caption:
        lines += [f"Every row: `{table.caption}`", ""]
    lines += [_grid(report, "github"), ""]
    if (beside := beside_table(report, style="github")) is not None:
        lines += [f"{_BESIDE}:", "", beside, ""]
    for row_id, verdict, reason in reasons(report):
        lines.append(f"- **{verdict}** `{row_id}`: {reason}")
        lines += [f"  - {each}" for each in why(report, row_id)]
    for row_id, chosen in chosen_in(report, style="github"):
        lines += ["", f"autoquant chose for `{row_id}`:", "", chosen, ""]
    lines += [f"- {note}" for note in notes(report)]
    return "\n".join(lines) + "\n"


def _grid(report: Report, style: str) -> str:
    table = build_table(report)
    rows = table.rows
    if style == "github":
        # A bar ends a cell there, and the path of a model may hold one.
        rows = tuple(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)
    return tabulate(
        rows,
        headers=table.headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=[
            "left" if name in {"row", "verdict"} else "right" for name in table.headers
        ],
    )


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": to_json,
}
