"""The tables of a report: of its rows, of the published rows, of autoquant's formats.

The sets `published` and `reference` hold the same rows: the first as the A100 table
states them, the second on this project's engine, with the same `reference_key`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import starmap

from tabulate import tabulate

from llama_perf.metrics import METRICS, PEAK_MEMORY, TOK_S
from llama_perf.results.measurement import LinearChoice, Measurement
from llama_perf.results.run import Comparison, Report, RowResult, Verdict
from llama_perf.rows.selection import load_set
from llama_perf.words import loss_found

NOTHING = "-"
TITLE = "the published rows: on the A100, with its settings here, on this engine here"
_HEADERS = (
    "row",
    "A100 tok/s",
    "published tok/s",
    "speed-up",
    "reference tok/s",
    "speed-up",
    "reference / published",
)


def results_table(report: Report, style: str) -> tuple[str, str]:
    """The part of the id that all rows share, and the table in tabulate's `style`.

    The A100's columns are there if any row is in the published table, that of the
    smallest loss that a run detects if any baseline row has processes enough.
    """
    names, common = short_names([result.id for result in report.results])
    if style == "github":
        # GitHub ends a cell at a bar, and the path of a model may hold one.
        names = [name.replace("|", r"\|") for name in names]
    verdicts = [comparison for _, comparison in report.judged]
    columns = [("row", names)]
    for metric in METRICS:
        if (column := metric.column) is None:
            continue
        values = [metric.read(result.measurement) for result in report.results]
        cells = _cells(values, f"{{:.{column.digits}f}}", column.scale)
        columns.append((column.header, cells))
        if column.change:
            cells = [change_of(comparison, metric.title) for comparison in verdicts]
            columns.append(("change", cells))
        detectable = [one.minimum_detectable if one else None for one in verdicts]
        if metric is TOK_S and any(detectable):
            cells = [NOTHING if one is None else loss_found(one) for one in detectable]
            columns.append(("min. detectable", cells))
    columns.append(("verdict", list(starmap(outcome, report.judged))))
    if report.reference:
        columns += _reference_columns(report)
    headers = [header for header, _ in columns]
    rows = zip(*(cells for _, cells in columns), strict=True)
    aligned = ["left" if name in {"row", "verdict"} else "right" for name in headers]
    return common, tabulate(
        rows, headers=headers, tablefmt=style, disable_numparse=True, colalign=aligned
    )


def outcome(result: RowResult, comparison: Comparison | None) -> str:
    """The verdict on a row in one word, or how it ended where there is none."""
    return result.status.value if comparison is None else comparison.verdict.value


def short_names(ids: Sequence[str]) -> tuple[list[str], str]:
    """Row ids without the tokens that all of them share, and those tokens."""
    # A dot inside a number, such as a model's "3.1", does not separate two tokens.
    split = [re.split(r"(?<!\d)\.|\.(?!\d)", row_id) for row_id in ids]
    first = split[0] if split else []
    common = [token for token in first if all(token in tokens for tokens in split)]
    names = [
        ".".join(token for token in tokens if token not in common) for tokens in split
    ]
    if not all(names) or len(set(names)) < len(names):
        return list(ids), ""
    return names, ".".join(common)


def _reference_columns(report: Report) -> list[tuple[str, list[str]]]:
    now = [result.measurement for result in report.results]
    then = [report.reference.get(result.id) for result in report.results]
    shares = [one.device_bandwidth_share if one else None for one in then]
    return [
        ("A100 tok/s", _cells(map(TOK_S.read, then), "{:.2f}")),
        ("speed-up", list(map(speed_up, now, then))),
        ("A100 %", _cells(shares, "{:.1f}", 100)),
        ("A100 peak GB", _cells(map(PEAK_MEMORY.read, then), "{:.2f}", 1e-9)),
    ]


def speed_up(now: Measurement | None, then: Measurement | None) -> str:
    """The ratio of two rows' tok/s, such as "2.31x"; "-" if either is unknown."""
    if now is None or then is None:
        return NOTHING
    return f"{now.tok_s / then.tok_s:.2f}x"


def _cells(values: Iterable[float | None], form: str, scale: float = 1) -> list[str]:
    return [
        NOTHING if value is None else form.format(value * scale) for value in values
    ]


def change_of(comparison: Comparison | None, metric: str) -> str:
    """The change of a metric, such as "-6.9%"; "-" if it was not compared."""
    for change in () if comparison is None else comparison.changes:
        if change.metric == metric:
            return f"{change.change:+.1%}"
    return NOTHING


def shown(result: RowResult, comparison: Comparison) -> tuple[str, str, str]:
    """The figures of a row that ended, its verdict, and the verdict's colour."""
    style = "red" if comparison.failed else "yellow"
    if comparison.verdict in {Verdict.SAME, Verdict.FASTER, Verdict.SMALLER}:
        style = "green"
    if result.measurement is None:
        return "", f"{comparison.verdict.value}: {comparison.reason}", style
    change = change_of(comparison, TOK_S.title)
    figures = result.summary if change == NOTHING else f"{result.summary}  {change}"
    if comparison.verdict is Verdict.NOT_COMPARED:
        return figures, "", ""
    return figures, comparison.verdict.value, style


def published_rows(report: Report) -> list[tuple[RowResult, RowResult]]:
    """(result as published, result on this engine) of the rows that it has of both."""

    def of_set(name: str) -> dict[tuple[object, ...], RowResult]:
        ids = {row.id for row in load_set(name)}
        found = [result for result in report.results if result.id in ids]
        return {result.row.reference_key: result for result in found}

    literal, engine = of_set("published"), of_set("reference")
    return [(literal[key], engine[key]) for key in engine if key in literal]


def published_table(report: Report, *, style: str = "simple") -> str | None:
    """The table, or None if the report has no row of both sets."""
    lines = []
    for literal, engine in published_rows(report):
        # The id without the fields in which the two sets differ.
        both = replace(engine.row, kernels="native", attention="decode")
        both = replace(both, device="cuda", capture=False, fused=False)
        a100 = report.reference.get(engine.id)
        lines.append(
            (
                both.id,
                *_cells([TOK_S.read(a100)], "{:.2f}"),
                _speed(literal),
                speed_up(literal.measurement, a100),
                _speed(engine),
                speed_up(engine.measurement, a100),
                speed_up(engine.measurement, literal.measurement),
            )
        )
    if not lines:
        return None
    aligned = ["left", *["right"] * (len(_HEADERS) - 1)]
    return tabulate(
        lines, headers=_HEADERS, tablefmt=style, disable_numparse=True, colalign=aligned
    )


def _speed(result: RowResult) -> str:
    if result.measurement is None:
        return result.status.value
    return f"{result.measurement.tok_s:.2f}"


def choice_table(choices: Sequence[LinearChoice], *, style: str = "simple") -> str:
    """One line for each shape of linear layer; "-" if a format does not fit it."""
    # A choice lists the formats that fit its shape; the longest list has all of them.
    names = max((list(choice.total_ms) for choice in choices), key=len)
    headers = ("N", "K", "tokens x products", *names, "chosen", "times")
    cells = [
        (
            str(choice.out_features),
            str(choice.in_features),
            ", ".join(f"{tokens} x {count}" for tokens, count in choice.products),
            *_cells(map(choice.total_ms.get, names), "{:.2f} ms"),
            choice.chosen,
            "reused" if choice.reused else "taken now",
        )
        for choice in choices
    ]
    return tabulate(cells, headers=headers, tablefmt=style, disable_numparse=True)


def chosen_in(report: Report, *, style: str = "simple") -> list[tuple[str, str]]:
    """(row id, table) of every autoquant row that was measured."""
    return [
        (result.id, choice_table(result.measurement.autoquant, style=style))
        for result in report.results
        if result.measurement is not None and result.measurement.autoquant
    ]
