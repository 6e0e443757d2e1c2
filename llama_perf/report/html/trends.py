"""The page of trends: a table of the rows, and charts of their figures run by run."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from llama_perf.report.html.chart_values import GREEN, VERMILION
from llama_perf.report.html.page import Chart, Section, page, render
from llama_perf.report.table import short_names
from llama_perf.report.trends import METRICS, change_in_words, columns_of
from llama_perf.results.history import HistoryLine
from llama_perf.results.trends import ChangePoint, Trend, Trends
from llama_perf.words import counted

LOSS, GAIN = VERMILION, GREEN
"""Of Okabe and Ito's colours; a sign and a word say the same."""
_HEIGHT = 200


def as_page(trends: Trends, notes: Sequence[str]) -> str:
    """The document as HTML, with `notes` on all of it."""
    sections = []
    for device_key, own in groupby(trends.rows, lambda trend: trend.device_key):
        rows = list(own)
        charts = [chart for trend in rows for chart in _charts(trend)]
        table = _table(rows, trends.last)
        sections.append(Section(title=device_key, html=table, charts=charts))
    return page("Trends of llama-perf", sections, note="; ".join(notes) or None)


def _table(rows: Sequence[Trend], last: int) -> Markup:
    short, common = short_names([trend.id for trend in rows])
    # The charts take the place of the curve.
    columns = [one for one in columns_of(rows, short, last) if one.name != "trend"]
    cells = (zip(one.cells, map(_value, one.cells), strict=True) for one in columns)
    names = [_chart_name(trend, "tok/s") for trend in rows]
    changes = [
        change_in_words(trend, change) for trend in rows for change in trend.changes
    ]
    return render(
        "trends.html.j2",
        common=common,
        columns=columns,
        lines=list(zip(names, zip(*cells, strict=True), strict=True)),
        changes=changes,
    )


def _value(cell: str) -> float | None:
    """The number that a cell begins with, by which its column is sorted."""
    number = re.match(r"[+-]?\d+(\.\d+)?(?=%| |$)", cell)
    return None if number is None else float(number[0])


def _chart_name(trend: Trend, metric: str) -> str:
    # An id in the page has no spaces.
    return f"{trend.device_key}-{trend.id}-{metric}".replace(" ", "-")


def _charts(trend: Trend) -> Iterator[Chart]:
    """One of tok/s, and one of peak memory where that changed for good."""
    for title in METRICS:
        own = [change for change in trend.changes if change.metric == title]
        if own or title == "tok/s":
            yield Chart(
                name=_chart_name(trend, title),
                title=f"{trend.id}: {title}",
                text=_words(trend, own),
                spec=_spec(trend, title, own),
            )


def _words(trend: Trend, changes: Sequence[ChangePoint]) -> str:
    """What the chart shows: so many runs, and where they changed."""
    first, last = trend.lines[0].started[:10], trend.lines[-1].started[:10]
    words = [f"{counted(len(trend.lines), 'run')} from {first} to {last}"]
    if disturbed := len(trend.lines) - len(trend.calm):
        words.append(f"{disturbed} disturbed (hollow)")
    for one in changes:
        commits = f"{one.before.commit or '?'} to {one.after.commit or '?'}"
        words.append(f"{one.change:+.1%} on {one.after.started[:10]} ({commits})")
    return "; ".join(words) + "."


def _spec(trend: Trend, title: str, changes: Sequence[ChangePoint]) -> dict[str, Any]:
    """A line through the runs, a point for each, and a rule at each change point."""
    metric = METRICS[title]
    assert metric.column is not None, "both metrics have a column"
    scale = metric.column.scale

    def point(line: HistoryLine) -> dict[str, Any]:
        return {
            "run": line.started,
            "value": (metric.read(line) or 0.0) * scale,
            "commit": line.commit or "unknown",
            "verdict": "none" if line.verdict is None else line.verdict.value,
            "disturbed": line.disturbed or "no",
        }

    x = {"field": "run", "type": "temporal", "title": None}
    y = {
        "field": "value",
        "type": "quantitative",
        "title": metric.column.header,
        "scale": {"zero": False},
    }
    shown = [
        {
            "field": "run",
            "type": "temporal",
            "title": "run",
            "format": "%Y-%m-%d %H:%M",
        },
        {"field": "value", "title": metric.column.header, "format": ".4~g"},
        *({"field": name} for name in ("commit", "verdict", "disturbed")),
    ]
    hollow = {"test": "datum.disturbed !== 'no'", "value": "transparent"}
    layers: list[dict[str, Any]] = [
        {
            "transform": [{"filter": "datum.disturbed === 'no'"}],
            "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.6},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "point", "size": 22, "strokeWidth": 1.2},
            "encoding": {
                "x": x,
                "y": y,
                "fill": {"condition": hollow, "value": "var(--series)"},
                "stroke": {"value": "var(--series)"},
                "tooltip": shown,
            },
        },
    ]
    if changes:
        layers += _marks(changes, count=len(trend.calm))
    return {
        "height": _HEIGHT,
        "data": {"values": [point(line) for line in trend.lines]},
        "layer": layers,
    }


def _marks(changes: Sequence[ChangePoint], *, count: int) -> list[dict[str, Any]]:
    """A rule and its size in words at each change point, of `count` runs."""
    values = [
        {
            "run": one.after.started,
            "size": f"{one.change:+.1%} {'loss' if one.is_loss else 'gain'}",
            "commits": f"{one.before.commit or '?'} to {one.after.commit or '?'}",
            "environment": "; ".join(one.environment) or "the same",
            "loss": one.is_loss,
            # On the right the words would not fit behind their rule.
            "late": one.runs < 0.3 * count,
        }
        for one in changes
    ]
    colour = {"condition": {"test": "datum.loss", "value": LOSS}, "value": GAIN}
    x = {"field": "run", "type": "temporal"}
    tips = [{"field": name} for name in ("size", "commits", "environment")]
    return [
        {
            "data": {"values": values},
            "mark": {"type": "rule", "strokeWidth": 2, "strokeDash": [4, 3]},
            "encoding": {"x": x, "color": colour, "tooltip": tips},
        },
        {
            "data": {"values": values},
            "mark": {
                "type": "text",
                "align": {"expr": "datum.late ? 'right' : 'left'"},
                "dx": {"expr": "datum.late ? -4 : 4"},
                "y": 8,
            },
            "encoding": {"x": x, "text": {"field": "size"}, "tooltip": tips},
        },
    ]
