"""The table of the formats that autoquant chose."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from llama_perf.results.measurement import LinearChoice
from llama_perf.results.run import Report


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
            *(_milliseconds(choice.total_ms.get(name)) for name in names),
            choice.chosen,
            "reused" if choice.reused else "taken now",
        )
        for choice in choices
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
