"""A report as text for a terminal, and as markdown for a CI summary."""

from llama_perf.report import report_format
from llama_perf.report.notes import notes, reasons, summary
from llama_perf.report.table import TITLE, chosen_in, published_table, results_table
from llama_perf.results.run import Report


@report_format("text", ".txt")
def as_text(report: Report) -> str:
    """The table, the reasons, the notes and the summary line."""
    caption, table = results_table(report, "simple")
    lines = [f"every row: {caption}"] if caption else []
    lines += [table, ""]
    if (published := published_table(report)) is not None:
        lines += [f"{TITLE}:", published, ""]
    for row_id, verdict, reason, why in reasons(report):
        lines.append(f"{verdict} {row_id}: {reason}")
        lines += [f"  {line}" for line in why]
    for row_id, choices in chosen_in(report):
        lines += [f"autoquant chose for {row_id}:", choices, ""]
    return "\n".join([*lines, *notes(report), summary(report)]) + "\n"


@report_format("markdown", ".md")
def as_markdown(report: Report) -> str:
    """The same as GitHub shows it."""
    caption, table = results_table(report, "github")
    lines = [f"### llama-perf: {summary(report)}", ""]
    if caption:
        lines += [f"Every row: `{caption}`", ""]
    lines += [table, ""]
    if (published := published_table(report, style="github")) is not None:
        lines += [f"{TITLE}:", "", published, ""]
    for row_id, verdict, reason, why in reasons(report):
        lines.append(f"- **{verdict}** `{row_id}`: {reason}")
        lines += [f"  - {line}" for line in why]
    for row_id, choices in chosen_in(report, style="github"):
        lines += ["", f"autoquant chose for `{row_id}`:", "", choices, ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(report))]) + "\n"
