"""The page of a comparison of recordings: its verdicts, its tables, its changes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from markupsafe import Markup

from llama_perf.metrics import TOK_S
from llama_perf.report.columns import Column
from llama_perf.report.diff_table import (
    columns,
    header_of,
    letters,
    names_of,
    notes,
    other_headers,
    others,
    reasons,
    sides,
    summary,
)
from llama_perf.report.html.chart_values import BLUE, GREEN, GREY, VERMILION
from llama_perf.report.html.page import Chart, Section, page, render
from llama_perf.results.diff import Diff, DiffRow
from llama_perf.results.run import Verdict

_COLOURS = {
    "worse": VERMILION,
    "better": GREEN,
    "within its limit": BLUE,
    "not judged": GREY,
}
_BETTER = {Verdict.FASTER, Verdict.SMALLER}
_MOST_ROWS = 60
# Pixels of a row.
_LINE = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    """A cell of a table; `value` is what it sorts by where that is not its text."""

    text: str
    is_figure: bool = False
    badge: str = ""
    value: float | None = None


def diff_page(diff: Diff, asked: Sequence[str]) -> str:
    """The comparison as HTML; `asked` are the metrics that are shown in any case."""
    names, common = names_of(diff)
    caption = f"every row: {common}" if common else ""
    made_up = [side.note for side in diff.sides if side.note]
    return page(
        summary(diff),
        [
            Section(title="Verdicts", html=_verdicts(diff)),
            *_changes(diff, names),
            Section(title="Speed and memory", html=_main_table(diff, names, caption)),
            *_others(diff, names, asked),
            Section(title="Notes", html=_notes(diff)),
        ],
        note="; ".join(dict.fromkeys(made_up)) or None,
    )


def _verdicts(diff: Diff) -> Markup:
    failed = {row.id: _badge(row) for row in diff.rows}
    return render(
        "diff_verdicts.html.j2",
        sides=list(sides(diff)),
        rows=[
            (row_id, verdict, reason, why, failed[row_id])
            for row_id, verdict, reason, why in sorted(
                reasons(diff), key=lambda one: failed[one[0]] != "bad"
            )
        ],
    )


def _notes(diff: Diff) -> Markup:
    return render("diff_notes.html.j2", lines=list(notes(diff)))


def _badge(row: DiffRow) -> str:
    found = row.comparison
    if found is None:
        return ""
    if found.failed:
        return "doubt" if found.verdict is Verdict.UNDECIDED else "bad"
    return "good" if found.verdict in {*_BETTER, Verdict.SAME} else ""


def _main_table(diff: Diff, names: Sequence[str], caption: str) -> Markup:
    chosen = list(columns(diff, names))
    lines = [
        [_cell(column, row, text) for column, text in zip(chosen, cells, strict=True)]
        for row, *cells in zip(
            diff.rows, *(column.cells for column in chosen), strict=True
        )
    ]
    return _table([column.header for column in chosen], lines, caption)


def _cell(column: Column, row: DiffRow, text: str) -> _Cell:
    badge = _badge(row) if column.name == "verdict" else ""
    return _figure(text) if column.is_figure else _Cell(text=text, badge=badge)


def _figure(text: str) -> _Cell:
    """A cell that sorts as the number that it begins with, if it does."""
    number = text.split(" ")[0].removesuffix("%")
    try:
        return _Cell(text=text, is_figure=True, value=float(number))
    except ValueError:
        return _Cell(text=text, is_figure=True)


def _table(
    headers: Sequence[str], lines: Sequence[Sequence[_Cell]], caption: str = ""
) -> Markup:
    return render("diff_table.html.j2", headers=headers, lines=lines, caption=caption)


def _others(
    diff: Diff, names: Sequence[str], asked: Sequence[str]
) -> Iterator[Section]:
    lines = [
        [*map(_text, line.cells()[:2]), *map(_figure, line.cells()[2:])]
        for line in others(diff, names, asked)
    ]
    if lines:
        html = _table(other_headers(diff), lines)
        yield Section(title="Other metrics", html=html)


def _text(text: str) -> _Cell:
    return _Cell(text=text)


def _changes(diff: Diff, names: Sequence[str]) -> Iterator[Section]:
    first, *rest = letters(diff)
    values: dict[str, list[dict[str, Any]]] = {}
    for row, name in zip(diff.rows, names, strict=True):
        changes: Sequence[float | None] = row.metric(TOK_S.title).changes[1:]
        if len(rest) == 1 and row.speed is not None:
            changes = [row.speed.change]
        for letter, change in zip(rest, changes, strict=True):
            if change is not None:
                value = {
                    "row": name,
                    "recording": letter,
                    "change": 100 * change,
                    "limit": None if row.speed is None else -100 * row.speed.limit,
                    "outcome": _outcome(row),
                    "verdict": row.comparison.verdict.value if row.comparison else "",
                }
                values.setdefault(name, []).append(value)

    def largest(name: str) -> float:
        return max(abs(float(value["change"])) for value in values[name])

    def last(name: str) -> float:
        return float(values[name][-1]["change"])

    changed = [name for name in values if largest(name) > 0]
    if not changed:
        return
    kept = sorted(changed, key=largest, reverse=True)[:_MOST_ROWS]
    text = f"Change of {header_of(TOK_S)} from {first}, in percent; left is slower."
    if len(rest) == 1:
        text += (
            " Where a ratio is judged, it is the ratio's. A tick is the limit of a row."
        )
    if len(kept) < len(values):
        text += f" Of {len(values)} rows the {len(kept)} that changed most."
    kept.sort(key=last)
    shown = [value for name in kept for value in values[name]]
    by_row = alt.Y("row:N", sort=kept, title=None, axis=alt.Axis(labelLimit=280))
    spec = _bars(shown, by_row) if len(rest) == 1 else _points(shown, by_row)
    chart = Chart(name="changes", title="By row", text=text, spec=spec)
    yield Section(title="Changes of speed", charts=[chart])


def _outcome(row: DiffRow) -> str:
    found = row.comparison
    if found is None or row.speed is None:
        return "not judged"
    if found.failed:
        return "worse"
    return "better" if found.verdict in _BETTER else "within its limit"


def _bars(values: Sequence[Mapping[str, Any]], by_row: alt.Y) -> dict[str, Any]:
    base = alt.Chart({"values": list(values)}).encode(y=by_row)
    colours = alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values()))
    bars = base.mark_bar(height={"band": 0.6}).encode(
        x=alt.X("change:Q", title="change, %"),
        color=alt.Color("outcome:N", scale=colours, title=None),
        tooltip=[
            *(alt.Tooltip(f"{name}:N") for name in ("row", "verdict")),
            *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in ("change", "limit")),
        ],
    )
    ticks = base.mark_tick(thickness=2, color="#999999").encode(x="limit:Q")
    # A verdict in words beside its colour.
    words = (
        base.transform_filter("datum.verdict != 'SAME'")
        .transform_calculate(end="max(datum.change, 0)")
        .mark_text(align="left", dx=4)
        .encode(x="end:Q", text="verdict:N")
    )
    return _spec(bars + ticks + words, values)


def _points(values: Sequence[Mapping[str, Any]], by_row: alt.Y) -> dict[str, Any]:
    chart = (
        alt.Chart({"values": list(values)})
        .mark_point(size=70, filled=True)
        .encode(
            y=by_row,
            x=alt.X("change:Q", title="change, %"),
            color=alt.Color("recording:N"),
            shape=alt.Shape("recording:N"),
            tooltip=["row:N", "recording:N", alt.Tooltip("change:Q", format="+.1f")],
        )
    )
    return _spec(chart, values)


def _spec(
    chart: alt.Chart | alt.LayerChart, values: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    rows = {value["row"] for value in values}
    height = _LINE * len(rows)
    spec: dict[str, Any] = chart.properties(height=height).to_dict()
    # The page has a style of its own.
    return {name: value for name, value in spec.items() if name != "config"}
