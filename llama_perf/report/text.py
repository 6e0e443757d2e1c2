"""A report as text for a terminal, and as markdown for a CI summary."""

from llama_perf.report import report_format
from llama_perf.report.columns import ALL, Layout
from llama_perf.report.notes import notes, reasons, summary
from llama_perf.report.table import TITLE, chosen_in, published_table, results_table
from llama_perf.results.run import Report


@report_format("text", ".txt", has_columns=True)
def as_text(report: Report, layout: Layout = ALL) -> str:
    """The table, the reasons, the notes and the summary line.

    Where lines have a width, what is wider is left out, and a line says so.
    """
    caption, table = results_table(report, "simple", layout)
    lines = [f"every row: {caption}"] if caption else []
    lines += [table, ""]
    whole = table if layout.width is None else results_table(report, "simple")[1]
    named = layout.names is not None
    left_out = [] if named or _fits(whole, layout) else ["columns"]
    if (published := published_table(report)) is not None:
        if _fits(published, layout):
            lines += [f"{TITLE}:", published, ""]
        else:
            left_out.append("the published rows")
    for row_id, verdict, reason, why in reasons(report):
        lines.append(f"{verdict} {row_id}: {reason}")
        lines += [f"  {line}" for line in why]
    for row_id, choices in chosen_in(report):
        if _fits(choices, layout):
            lines += [f"autoquant chose for {row_id}:", choices, ""]
        else:
            left_out.append(f"autoquant's choices for {row_id}")
    if left_out:
        lines.append(
            f"not in {layout.width} characters a line: {', '.join(left_out)};"
            " --columns all shows all"
        )
    return "\n".join([*lines, *notes(report), summary(report)]) + "\n"


def _fits(table: str, layout: Layout) -> bool:
    width = layout.width
    return width is None or max(map(len, table.splitlines())) <= width


@report_format("markdown", ".md", has_columns=True)
def as_markdown(report: Report, layout: Layout = ALL) -> str:
    """The same as GitHub shows it."""
    caption, table = results_table(report, "github", layout)
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
