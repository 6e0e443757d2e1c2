"""A report as CSV: a line for each row, with its figures as they were measured."""

import csv
import io
from dataclasses import fields

from llama_perf.metrics import METRICS, value_of
from llama_perf.report import report_format
from llama_perf.results.disturbance import disturbance
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report

_FIELDS = [
    field.name
    for field in fields(Measurement)
    if field.type in {float, int, str, float | None, int | None, str | None}
]
"""The fields of a measurement that hold one number or one word."""
# The spread of the samples stands beside the speed that it belongs to.
_FIGURES = [_FIELDS[0], "sample_spread", *_FIELDS[1:]]
# What a table has only where it is named.
_FIGURES += [
    metric.source
    for metric in METRICS
    if metric.column and not metric.column.is_usual and metric.source not in _FIELDS
]


@report_format("csv", ".csv")
def as_csv(report: Report) -> str:
    """One line for each row; an empty cell stands for a figure that is not known."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    words = ["id", "name", "status", "verdict", "failed", "reason", "disturbed"]
    lines.writerow([*words, *(name.rpartition(".")[2] for name in _FIGURES)])
    for result, comparison in report.judged:
        judged: tuple[object, ...] = (None, None, result.reason)
        if comparison is not None:
            judged = (comparison.verdict.value, comparison.failed, comparison.reason)
        figures = [value_of(result.measurement, name) for name in _FIGURES]
        about = (result.id, result.row.name, result.status.value)
        disturbed = disturbance(result, comparison)
        lines.writerow([*about, *judged, disturbed, *figures])
    return text.getvalue()
