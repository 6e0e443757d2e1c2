"""A report as CSV: a line for each row, with its figures as they were measured."""

from llama_perf.report import report_format
from llama_perf.report.flat import FIELDS, as_csv_text, lines
from llama_perf.results.run import Report


@report_format("csv", ".csv")
def as_csv(report: Report) -> str:
    """One line for each row; an empty cell stands for a figure that is not known."""
    return as_csv_text(FIELDS, lines(report))
