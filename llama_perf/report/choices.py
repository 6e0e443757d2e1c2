"""What autoquant chose, as the table that is printed and put into reports."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from llama_perf.results.measurement import LinearChoice
from llama_perf.results.run import Report


def choice_table(choices: Sequence[LinearChoice], *, style: str = "simple") -> str:
    """One line for each shape of linear; a scheme that does not fit it has no time."""
    # A choice lists the candidates that fit, in their order; the longest lists all.
    names = max((list(each.total_ms) for each in choices), key=len)
    headers = ("N", "K", "tokens x products", *names, "chosen", "times")
    cells = [
        (
            str(each.out_features),
            str(each.in_features),
            ", ".join(f"{tokens} x {count}" for tokens, count in each.products),
            *(_milliseconds(each.total_ms.get(name)) for name in names),
            each.chosen,
            "reused" if each.reused else "taken now",
        )
        for each in choices
    ]
    return tabulate(cells, headers=headers, tablefmt=style, disable_numparse=True)


def _milliseconds(total: float | None) -> str:
    return "-" if total is None else f"{total:.2f} ms"


def chosen_in(report: Report, *, style: str = "simple") -> list[tuple[str, str]]:
    """(row id, table) of every autoquant row that was measured."""
    return [
        (result.id, choice_table(result.measurement.autoquant, style=style))
        for result in report.results
        if result.measurement is not None and result.measurement.autoquant
    ]
