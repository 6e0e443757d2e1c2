"""The table of a report: one line for each row.

Text and markdown differ only in how they draw it. A cell without a value is "-".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from llama_perf.metrics import METRICS, TOK_S, Metric
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.results.verdict import Comparison

NOTHING = "-"

Judged = Sequence[tuple[RowResult, Comparison | None]]
"""The results of a report, each with its verdict, None where there is none yet."""
TableColumn = tuple[str, list[str]]
"""A header and the cells below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Headers and cells; `caption` is the part of the id that all rows share."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def build_table(report: Report) -> Table:
    """The table of a report.

    The A100's columns are there if any row is in the published table. The column of
    the smallest loss of speed that a run detects is there if any baseline row holds
    enough processes to know it.
    """
    names, common = short_names([result.id for result in report.results])
    judged = [(result, comparison_of(report, result.id)) for result in report.results]
    detectable = [one.minimum_detectable if one else None for _, one in judged]
    columns = [("row", names)]
    for metric in METRICS:
        columns += _metric_columns(metric, judged)
        if metric is TOK_S and any(detectable):
            cells = [_number(share, ".1%") for share in detectable]
            columns.append(("min. detectable", cells))
    columns.append(("verdict", [outcome(*pair) for pair in judged]))
    if report.reference:
        columns += _reference_columns(report)
    return Table(
        caption=common,
        headers=tuple(header for header, _ in columns),
        rows=tuple(zip(*(cells for _, cells in columns), strict=True)),
    )


def _metric_columns(metric: Metric, judged: Judged) -> list[TableColumn]:
    column = metric.column
    if column is None:
        return []
    cells = []
    for result, _ in judged:
        value = None if result.measurement is None else metric.read(result.measurement)
        scaled = None if value is None else value * column.scale
        cells.append(_number(scaled, f".{column.digits}f"))
    columns = [(column.header, cells)]
    if column.change:
        changes = [_change(comparison, metric.title) for _, comparison in judged]
        columns.append(("change", changes))
    return columns


def comparison_of(report: Report, row_id: str) -> Comparison | None:
    """The verdict on a row, None where there is none yet."""
    comparisons = (one for one in report.comparisons if one.id == row_id)
    return next(comparisons, None)


def outcome(result: RowResult, comparison: Comparison | None) -> str:
    """The verdict on a row in one word, or how it ended where there is none."""
    return result.status.value if comparison is None else comparison.verdict.value


def short_names(ids: Sequence[str]) -> tuple[list[str], str]:
    """Row ids without the tokens that all of them share, and those tokens."""
    split = [_tokens(row_id) for row_id in ids]
    if len(split) < 2:
        return list(ids), ""
    common = [token for token in split[0] if all(token in tokens for tokens in split)]
    names = [
        ".".join(token for token in tokens if token not in common) for tokens in split
    ]
    if not all(names) or len(set(names)) < len(names):
        return list(ids), ""
    return names, ".".join(common)


def _tokens(row_id: str) -> list[str]:
    # A dot inside a number, such as a model's "3.1", does not separate two tokens.
    tokens: list[str] = []
    for part in row_id.split("."):
        if tokens and part[:1].isdigit() and tokens[-1][-1:].isdigit():
            tokens[-1] += f".{part}"
        else:
            tokens.append(part)
    return tokens


def _reference_columns(report: Report) -> list[TableColumn]:
    """The published A100 figures, for the rows that have them."""
    rows = []
    for result in report.results:
        a100 = report.reference.get(result.id)
        if a100 is None:
            rows.append([NOTHING] * 4)
            continue
        share = a100.device_bandwidth_share
        rows.append(
            [
                f"{a100.tok_s:.2f}",
                speed_up(result.measurement, a100),
                _number(share and share * 100, ".1f"),
                f"{a100.peak_memory_bytes / 1e9:.2f}",
            ]
        )
    headers = ("A100 tok/s", "speed-up", "A100 %", "A100 peak GB")
    return [
        (header, [row[number] for row in rows]) for number, header in enumerate(headers)
    ]


def speed_up(now: Measurement | None, then: Measurement | None) -> str:
    """The ratio of two rows' tok/s, such as "2.31x"; "-" if either is unknown."""
    if now is None or then is None:
        return NOTHING
    return f"{now.tok_s / then.tok_s:.2f}x"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _change(comparison: Comparison | None, metric: str) -> str:
    if comparison is None:
        return NOTHING
    for change in comparison.changes:
        if change.metric == metric:
            return f"{change.change:+.1%}"
    return NOTHING


def draw_table(table: Table, style: str) -> str:
    """The table in one of tabulate's styles: "simple" for text, "github"."""
    rows = table.rows
    if style == "github":
        # GitHub ends a cell at a bar, and the path of a model may hold one.
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
