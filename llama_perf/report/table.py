"""The table of a report: one line for each row. A cell without a value is "-"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from llama_perf.metrics import METRICS, PEAK_MEMORY, TOK_S
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.results.verdict import Comparison

NOTHING = "-"


def results_table(report: Report, style: str) -> tuple[str, str]:
    """The part of the id that all rows share, and the table of a report.

    `style` is one of tabulate's: "simple" for text, "github". The A100's columns are
    there if any row is in the published table. The column of the smallest loss of speed
    that a run detects is there if any baseline row holds enough processes to know it.
    """
    names, common = short_names([result.id for result in report.results])
    verdicts = [comparison_of(report, result.id) for result in report.results]
    columns = [("row", names)]
    for metric in METRICS:
        if (column := metric.column) is None:
            continue
        values = [metric.read(result.measurement) for result in report.results]
        cells = _cells(values, f".{column.digits}f", column.scale)
        columns.append((column.header, cells))
        if column.change:
            cells = [_change(comparison, metric.title) for comparison in verdicts]
            columns.append(("change", cells))
        detectable = [one.minimum_detectable if one else None for one in verdicts]
        if metric is TOK_S and any(detectable):
            columns.append(("min. detectable", _cells(detectable, ".1%")))
    outcomes = [outcome(*pair) for pair in zip(report.results, verdicts, strict=True)]
    columns.append(("verdict", outcomes))
    if report.reference:
        columns += _reference_columns(report)
    headers = [header for header, _ in columns]
    rows: Iterable[Sequence[str]] = zip(*(cells for _, cells in columns), strict=True)
    if style == "github":
        # GitHub ends a cell at a bar, and the path of a model may hold one.
        rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    aligned = ["left" if name in {"row", "verdict"} else "right" for name in headers]
    return common, tabulate(
        rows, headers=headers, tablefmt=style, disable_numparse=True, colalign=aligned
    )


def comparison_of(report: Report, row_id: str) -> Comparison | None:
    """The verdict on a row, None where there is none yet."""
    comparisons = (one for one in report.comparisons if one.id == row_id)
    return next(comparisons, None)


def outcome(result: RowResult, comparison: Comparison | None) -> str:
    """The verdict on a row in one word, or how it ended where there is none."""
    return result.status.value if comparison is None else comparison.verdict.value


def short_names(ids: Sequence[str]) -> tuple[list[str], str]:
    """Row ids without the tokens that all of them share, and those tokens."""
    # A dot inside a number, such as a model's "3.1", does not separate two tokens.
    split = [re.split(r"(?<!\d)\.|\.(?!\d)", row_id) for row_id in ids]
    if len(split) < 2:
        return list(ids), ""
    common = [token for token in split[0] if all(token in tokens for tokens in split)]
    names = [
        ".".join(token for token in tokens if token not in common) for tokens in split
    ]
    if not all(names) or len(set(names)) < len(names):
        return list(ids), ""
    return names, ".".join(common)


def _reference_columns(report: Report) -> list[tuple[str, list[str]]]:
    """The published A100 figures, for the rows that have them."""
    now = [result.measurement for result in report.results]
    then = [report.reference.get(result.id) for result in report.results]
    shares = [one.device_bandwidth_share if one else None for one in then]
    return [
        ("A100 tok/s", _cells(map(TOK_S.read, then), ".2f")),
        ("speed-up", list(map(speed_up, now, then))),
        ("A100 %", _cells(shares, ".1f", 100)),
        ("A100 peak GB", _cells(map(PEAK_MEMORY.read, then), ".2f", 1e-9)),
    ]


def speed_up(now: Measurement | None, then: Measurement | None) -> str:
    """The ratio of two rows' tok/s, such as "2.31x"; "-" if either is unknown."""
    if now is None or then is None:
        return NOTHING
    return f"{now.tok_s / then.tok_s:.2f}x"


def _cells(values: Iterable[float | None], form: str, scale: float = 1) -> list[str]:
    return [
        NOTHING if value is None else format(value * scale, form) for value in values
    ]


def _change(comparison: Comparison | None, metric: str) -> str:
    for change in () if comparison is None else comparison.changes:
        if change.metric == metric:
            return f"{change.change:+.1%}"
    return NOTHING
