"""The table of a report: one line for each row.

Text and markdown differ only in how they draw it. A cell without a value is "-".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.results.verdict import Comparison

NOTHING = "-"
_COLUMNS = (
    "row",
    "tok/s",
    "change",
    "decode tok/s",
    "first token ms",
    "GB/s",
    "% of bandwidth",
    "peak GB",
    "change",
    "model GB",
    "check dB",
    "verdict",
)
_MINIMUM_DETECTABLE_AT = 3
_REFERENCE_COLUMNS = ("A100 tok/s", "speed-up", "A100 %", "A100 peak GB")


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
    with_reference = bool(report.reference)
    with_minimum_detectable = any(
        comparison.minimum_detectable for comparison in report.comparisons
    )
    rows = []
    for name, result in zip(names, report.results, strict=True):
        comparison = comparison_of(report, result.id)
        cells = [name, *_measured(result.measurement, comparison)]
        if with_minimum_detectable:
            cells.insert(_MINIMUM_DETECTABLE_AT, _minimum_detectable(comparison))
        cells.append(outcome(result, comparison))
        if with_reference:
            cells += _reference(result.measurement, report.reference.get(result.id))
        rows.append(tuple(cells))
    columns = list(_COLUMNS)
    if with_minimum_detectable:
        columns.insert(_MINIMUM_DETECTABLE_AT, "min. detectable")
    headers = (*columns, *(_REFERENCE_COLUMNS if with_reference else ()))
    return Table(caption=common, headers=headers, rows=tuple(rows))


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


def _measured(now: Measurement | None, comparison: Comparison | None) -> list[str]:
    if now is None:
        return [NOTHING] * (len(_COLUMNS) - 2)
    first = now.time_to_first_token_s
    return [
        f"{now.tok_s:.2f}",
        _change(comparison, "tok/s"),
        _number(now.decode_tok_s, ".2f"),
        _number(None if first is None else first * 1e3, ".1f"),
        f"{now.bandwidth_gb_s:.2f}",
        _share(now),
        f"{now.peak_memory_bytes / 1e9:.2f}",
        _change(comparison, "peak memory"),
        f"{now.model_size_bytes / 1e9:.2f}",
        _number(None if now.check is None else now.check.signal_to_noise_db, ".0f"),
    ]


def _reference(now: Measurement | None, then: Measurement | None) -> list[str]:
    if then is None:
        return [NOTHING] * len(_REFERENCE_COLUMNS)
    return [
        f"{then.tok_s:.2f}",
        speed_up(now, then),
        _share(then),
        f"{then.peak_memory_bytes / 1e9:.2f}",
    ]


def speed_up(now: Measurement | None, then: Measurement | None) -> str:
    """The ratio of two rows' tok/s, such as "2.31x"; "-" if either is unknown."""
    if now is None or then is None:
        return NOTHING
    return f"{now.tok_s / then.tok_s:.2f}x"


def _share(measured: Measurement) -> str:
    share = measured.device_bandwidth_share
    return _number(None if share is None else share * 100, ".1f")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _change(comparison: Comparison | None, metric: str) -> str:
    if comparison is None:
        return NOTHING
    for change in comparison.changes:
        if change.metric == metric:
            return f"{change.change:+.1%}"
    return NOTHING


def _minimum_detectable(comparison: Comparison | None) -> str:
    return _number(None if comparison is None else comparison.minimum_detectable, ".1%")


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
