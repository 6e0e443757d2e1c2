"""A report as text for a terminal."""

from __future__ import annotations

from llama_perf.report.autoquant_table import chosen_in
from llama_perf.report.formats import report_format
from llama_perf.report.notes import notes, reasons, summary, why
from llama_perf.report.published_table import TITLE, published_table
from llama_perf.report.table import build_table, draw_table
from llama_perf.results.run import Report


@report_format("text", ".txt")
def as_text(report: Report) -> str:
    """The table, the reasons, the notes and the summary line."""
    table = build_table(report)
    lines = [f"every row: {table.caption}"] if table.caption else []
    lines.append(draw_table(table, "simple"))
    lines.append("")
    if (published := published_table(report)) is not None:
        lines += [f"{TITLE}:", published, ""]
    for row_id, verdict, reason in reasons(report):
        lines.append(f"{verdict} {row_id}: {reason}")
        lines += [f"  {line}" for line in why(report, row_id)]
    for row_id, choices in chosen_in(report):
        lines += [f"autoquant chose for {row_id}:", choices, ""]
    lines += notes(report)
    lines.append(summary(report))
    return "\n".join(lines) + "\n"
