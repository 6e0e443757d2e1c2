"""A report as JSON Lines: an object for each row, with the fields of the CSV."""

from llama_perf.report import report_format
from llama_perf.report.flat import as_json_lines, lines
from llama_perf.results.run import Report


@report_format("jsonl", ".jsonl")
def as_jsonl(report: Report) -> str:
    """One line for each row; null stands for a figure that is not known."""
    return as_json_lines(lines(report))
