"""The tables of a report: of its rows, of the published rows, of autoquant's formats.

The sets `published` and `reference` hold the same rows: the first as the A100 table
states them, the second on this project's engine, with the same `reference_key`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tabulate import tabulate

from llama_perf.metrics import TOK_S
from llama_perf.report.columns import (
    ALL,
    NOTHING,
    Column,
    Layout,
    cells_of,
    change_of,
    columns,
    lines_of,
    speed_up,
)
from llama_perf.results.disturbance import disturbance
from llama_perf.results.measurement import LinearChoice
from llama_perf.results.run import Comparison, Report, RowResult, Verdict
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec

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


def results_table(report: Report, style: str, layout: Layout = ALL) -> tuple[str, str]:
    """The part of the id that all rows share, and the table in tabulate's `style`.

    By default the A100's columns are there if any row is in the published table, that
    of the smallest loss that a run detects if any baseline row has processes enough.
    """
    names, common = row_names([result.row for result in report.results])
    return common, table_of(columns(report, names, layout), style, layout.width)


def table_of(chosen: Sequence[Column], style: str, width: int | None) -> str:
    """A table of these columns in tabulate's `style`, in `width` characters.

    In markdown a line has no width.
    """
    lines = lines_of(chosen, None if style == "github" else width)
    return tabulate(
        in_cells(lines, style),
        headers=[column.header for column in chosen],
        tablefmt=style,
        disable_numparse=True,
        colalign=["right" if column.is_figure else "left" for column in chosen],
    )


def in_cells(lines: Iterable[Sequence[str]], style: str) -> list[list[str]]:
    """The lines of a table as tabulate's `style` takes them.

    GitHub ends a cell at a bar, and the path of a model may hold one.
    """
    bar = r"\|" if style == "github" else "|"
    return [[cell.replace("|", bar) for cell in line] for line in lines]


def row_names(rows: Sequence[RowSpec]) -> tuple[list[str], str]:
    """What rows are called beside one another, and the part of the id that all share.

    That is a row's own name, or else the part of its id in which the rows differ.
    """
    short, common = short_names([row.id for row in rows])
    names = [row.title or name for row, name in zip(rows, short, strict=True)]
    if len(set(names)) < len(names):
        # A name is what is left of another row's id.
        names, common = [row.title or row.id for row in rows], ""
    return names, common


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


def shown(result: RowResult, comparison: Comparison) -> tuple[str, str, str]:
    """The figures of a row that ended, its verdict, and the verdict's colour.

    A row that was disturbed says so.
    """
    disturbed = "disturbed" if disturbance(result, comparison) else ""
    style = "red" if comparison.failed else "yellow"
    harmless = comparison.verdict in {Verdict.SAME, Verdict.FASTER, Verdict.SMALLER}
    if harmless and not disturbed:
        style = "green"
    if result.measurement is None:
        return "", f"{comparison.verdict.value}: {comparison.reason}", style
    change = change_of(comparison, TOK_S.title)
    figures = result.summary if change == NOTHING else f"{result.summary}  {change}"
    words = [comparison.verdict.value, disturbed]
    if comparison.verdict is Verdict.NOT_COMPARED:
        words, style = [disturbed], style if disturbed else ""
    return figures, ", ".join(filter(None, words)), style


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
                *cells_of([TOK_S.read(a100)], "{:.2f}"),
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
            *cells_of(map(choice.total_ms.get, names), "{:.2f} ms"),
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
