"""The measured rows of a run as points of charts."""

from collections.abc import Sequence

from llama_perf.report.html.chart_values import Datum, family, rounded
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult

Measured = Sequence[tuple[RowResult, Measurement]]


def measured(report: Report) -> Measured:
    """The rows that were measured, and their figures."""
    return [
        (result, result.measurement)
        for result in report.results
        if result.measurement is not None
    ]


def sequence_tok_s(result: RowResult, figures: Measurement) -> float:
    """The tok/s of one sequence of the batch."""
    return figures.tok_s / result.row.batch_size


def point(result: RowResult, figures: Measurement) -> Datum:
    """What each point of a measured row has."""
    return {
        "row": result.id,
        "scheme": result.row.scheme,
        "family": family(result.row),
        "tok_s": rounded(sequence_tok_s(result, figures)),
    }
