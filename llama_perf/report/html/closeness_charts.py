"""Speed by closeness to the unquantized model, with the Pareto front of each model."""

from collections.abc import Sequence
from operator import itemgetter

import altair as alt

from llama_perf.report.html.chart_values import domain, listed, pareto_front, rounded
from llama_perf.report.html.measured_rows import (
    Measured,
    measured,
    point,
    sequence_tok_s,
)
from llama_perf.report.html.page import Chart
from llama_perf.report.html.specs import family_points, of_rows, spec_of
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.rows.spec import RowSpec
from llama_perf.words import counted

NO_CLOSENESS = (
    "There is no chart of speed by closeness: the closeness of logits to the"
    " unquantized model's is known of no row. The check of values is another thing: it"
    " compares a row with the same weights run another way."
)

_MOST_DB = 60.0
"""Rows closer than this are drawn at the end of the axis: those that compute in float32
have twice as many dB as any other."""


def closeness(report: Report) -> list[Chart]:
    """A chart for each model of which a row has its closeness."""
    by_model: dict[str, list[tuple[RowResult, Measurement]]] = {}
    for result, figures in measured(report):
        by_model.setdefault(result.row.model, []).append((result, figures))
    known = {
        model: rows
        for model, rows in by_model.items()
        if any(figures.best_closeness_db is not None for _, figures in rows)
    }
    return [
        _chart(f"closeness-{number}", model, rows)
        for number, (model, rows) in enumerate(known.items(), start=1)
    ]


def _chart(name: str, model: str, rows: Measured) -> Chart:
    known = [
        (result, figures, figures.best_closeness_db)
        for result, figures in rows
        if figures.best_closeness_db is not None
    ]
    places = [(db, sequence_tok_s(result, one)) for result, one, db in known]
    front = pareto_front(places)
    on_front = set(front)
    points = [
        {**point(result, figures), "db": rounded(db), "front": number in on_front}
        for number, (result, figures, db) in enumerate(known)
    ]
    full = [
        (sequence_tok_s(result, figures), result)
        for result, figures in rows
        if not result.row.is_quantized and figures.best_closeness_db is None
    ]
    unquantized = max(full, key=itemgetter(0), default=None)
    speeds = [tok_s for _, tok_s in places]
    speeds += [] if unquantized is None else [unquantized[0]]
    x = alt.X(
        "db:Q",
        title="closeness to the unquantized model, dB",
        scale=_scale(_shown_db([db for db, _ in places]), 1.0),
    )
    y = alt.Y(
        "tok_s:Q",
        title="tok/s of one sequence",
        scale=_scale(speeds, 0.05 * max(speeds)),
    )
    base = of_rows().encode(x=x, y=y)
    layers = [
        base.transform_filter("datum.front").mark_line(
            interpolate="step-before", strokeWidth=1.5, strokeDash=[5, 3]
        ),
        family_points(base, points, db="dB", front="on the Pareto front"),
    ]
    data = {"rows": points}
    far = [
        point for point, (db, _) in zip(points, places, strict=True) if db > _MOST_DB
    ]
    beyond = len(far)
    if far:
        # One label for all of them, which often lie on one another.
        fastest = max(far, key=itemgetter("tok_s"))
        data["beyond"] = [{**fastest, "label": f"more than {_MOST_DB:g} dB"}]
        named = of_rows("beyond").encode(x=x, y=y, text="label:N")
        layers.append(named.mark_text(align="right", dx=6, dy=-11))
    if unquantized is not None:
        tok_s, result = unquantized
        level = {"row": result.id, "tok_s": rounded(tok_s), "label": "unquantized"}
        data["unquantized"] = [level]
        base = of_rows("unquantized").encode(y=y)
        named = base.mark_text(align="left", dy=-6).encode(
            x=alt.value(2), text="label:N"
        )
        layers = [base.mark_rule(strokeDash=[1, 3]), named, *layers]
    return Chart(
        name=name,
        title=f"{model}: speed by closeness (up is faster, right is closer)",
        text=_text(
            [known[number][0] for number in front],
            [places[number] for number in front],
            known=len(known),
            quick=_quick([figures for _, figures, _ in known]),
            beyond=beyond,
            left_out=len(rows) - len(known),
            unquantized=unquantized,
        ),
        spec=spec_of(*layers, data=data),
    )


def _quick(rows: Sequence[Measurement]) -> int:
    """How many have only the quick figure, where others were measured over a text."""
    quick = sum(figures.closeness is None for figures in rows)
    return quick if quick < len(rows) else 0


def _shown_db(values: Sequence[float]) -> list[float]:
    """What the axis shows: room at its end for rows that are closer, and their dB."""
    usual = [db for db in values if db <= _MOST_DB] or [_MOST_DB]
    if len(usual) == len(values):
        return usual
    return [*usual, max(usual) + max(0.25 * (max(usual) - min(usual)), 1.0)]


def _scale(values: Sequence[float], least: float) -> alt.Scale:
    return alt.Scale(domain=domain(values, least=least), nice=False, clamp=True)


def _text(
    front: Sequence[RowResult],
    places: Sequence[tuple[float, float]],
    *,
    known: int,
    quick: int,
    beyond: int,
    left_out: int,
    unquantized: tuple[float, RowResult] | None,
) -> str:
    named = [
        f"{_of_model(result.row)} ({db:.1f} dB, {tok_s:.1f} tok/s)"
        for result, (db, tok_s) in zip(front, places, strict=True)
    ]
    text = f"Of {counted(known, 'row')} none is both as close and as fast as"
    text += f" {named[0]}."
    if len(named) > 1:
        text = (
            "The dashed steps are the Pareto front: no other row is both closer and"
            f" faster. Of {counted(known, 'row')} these are on it: {listed(named, 8)}."
        )
    if unquantized is not None:
        tok_s, result = unquantized
        text += (
            " Dotted: the fastest unquantized row of those without a closeness,"
            f" {_of_model(result.row)}, {tok_s:.1f} tok/s."
        )
    if beyond:
        rows = counted(beyond, "row")
        text += f" Drawn at the right end: {rows} of more than {_MOST_DB:.0f} dB."
    if quick:
        rows = counted(quick, "row")
        text += f" By the quick figure of a few tokens, not over the text: {rows}."
    if left_out:
        text += f" Left out, since their closeness is not known: {left_out}."
    return text


def _of_model(row: RowSpec) -> str:
    """What a row is called where its model is known."""
    return row.title or row.id.removeprefix(f"{row.model.lower()}.")
