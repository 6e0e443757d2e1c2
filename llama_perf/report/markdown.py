"""A report as markdown, for a CI summary."""

from __future__ import annotations

from llama_perf.report.autoquant_table import chosen_in
from llama_perf.report.formats import report_format
from llama_perf.report.notes import notes, reasons, summary, why
from llama_perf.report.published_table import TITLE, published_table
from llama_perf.report.table import build_table, draw_table
from llama_perf.results.run import Report


@report_format("markdown", ".md")
def as_markdown(report: Report) -> str:
    """The same as GitHub shows it."""
    table = build_table(report)
    lines = [f"### llama-perf: {summary(report)}", ""]
    if table.caption:
        lines += [f"Every row: `{table.caption}`", ""]
    lines += [draw_table(table, "github"), ""]
    if (published := published_table(report, style="github")) is not None:
        lines += [f"{TITLE}:", "", published, ""]
    for row_id, verdict, reason in reasons(report):
        lines.append(f"- **{verdict}** `{row_id}`: {reason}")
        lines += [f"  - {line}" for line in why(report, row_id)]
    for row_id, choices in chosen_in(report, style="github"):
        lines += ["", f"autoquant chose for `{row_id}`:", "", choices, ""]
    lines += [f"- {note}" for note in notes(report)]
    return "\n".join(lines) + "\n"
