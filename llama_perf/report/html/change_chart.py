"""The change of each row's speed since the baseline, from the largest loss on."""

from collections import Counter
from collections.abc import Sequence

import altair as alt

from llama_perf.metric import Rule
from llama_perf.metrics import METRICS, TOK_S
from llama_perf.report.html.chart_values import (
    LOOKS_OF_VERDICTS,
    Datum,
    domain,
    label,
    listed,
    rounded,
)
from llama_perf.report.html.page import Chart
from llama_perf.report.html.specs import drawing, looks, of_rows, spec_of, tooltip
from llama_perf.results.run import Comparison, MetricChange, Report, RowResult
from llama_perf.words import counted

# Ratios of speeds have titles of their own, which are no metric's.
_OTHERS = {metric.title for metric in METRICS if metric.rule is not Rule.SPEED}
_LOOKS = {verdict.value: look for verdict, look in LOOKS_OF_VERDICTS.items()}
_SHARES = ("change", "low", "high", "limit")
Changed = tuple[RowResult, Comparison, MetricChange]


def speed_change(comparison: Comparison) -> MetricChange | None:
    """The change of speed that was judged: that of tok/s, or of a ratio of speeds.

    Of several it is the largest loss. None if the speed was not compared.
    """
    speeds = [one for one in comparison.changes if one.metric not in _OTHERS]
    judged = [one for one in speeds if one.limit is not None] or speeds
    return min(judged, key=lambda one: one.change, default=None)


def changes(report: Report) -> Chart | None:
    """The chart of all rows that were compared; None if there is none."""
    compared = sorted(
        (
            (result, comparison, change)
            for result, comparison in report.judged
            if comparison is not None
            and (change := speed_change(comparison)) is not None
        ),
        key=lambda one: one[2].change,
    )
    if not compared:
        return None
    # What failed is drawn last, above the others.
    points = [_point(*one) for one in sorted(compared, key=lambda one: one[1].failed)]
    x = alt.X(
        "place:Q",
        title="rows, the largest loss first",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(labels=False, ticks=False, grid=False),
    )
    shown = [one[name] for one in points for name in _SHARES if name in one]
    y = alt.Y(
        "change:Q",
        title="change of speed, %",
        scale=alt.Scale(domain=domain([0, *shown], least=0.5), nice=False),
    )
    # Of the rows that are visible.
    base = (
        of_rows()
        .transform_window(
            rank="row_number()", sort=[alt.SortField("change", order="ascending")]
        )
        .transform_joinaggregate(count="count()")
        .transform_calculate(place="(datum.rank - 0.5) / datum.count")
        .encode(x=x)
    )
    dots = base.mark_point(filled=True, size=60, opacity=0.85).encode(
        y=y,
        tooltip=tooltip(
            row="row",
            verdict="verdict",
            change="change, %",
            low="95 %, from",
            high="95 %, to",
            limit="limit, %",
            metric="of",
        ),
        **looks("verdict", _LOOKS, (one["verdict"] for one in points)),
    )
    limits = base.transform_filter("isValid(datum.limit)").mark_tick(
        orient="horizontal", size=6, thickness=1.5, opacity=0.7
    )
    intervals = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
    zero = drawing("zero").mark_rule(strokeDash=[2, 2]).encode(y="zero:Q")
    layers = [
        zero,
        limits.encode(y="limit:Q"),
        intervals.encode(y="low:Q", y2="high:Q"),
        dots,
    ]
    return Chart(
        name="changes",
        title="Changes of speed since the baseline (up is faster)",
        text=_text(compared),
        spec=spec_of(*layers, data={"rows": points, "zero": [{"zero": 0}]}),
    )


def _point(result: RowResult, comparison: Comparison, change: MetricChange) -> Datum:
    shares = {"change": change.change}
    # Its interval is that of tok/s.
    if comparison.change_interval is not None and change.metric == TOK_S.title:
        shares["low"], shares["high"] = comparison.change_interval
    if change.limit is not None:
        shares["limit"] = -change.limit
    percent = {name: rounded(share * 100) for name, share in shares.items()}
    return {
        "row": result.id,
        "verdict": comparison.verdict.value,
        "metric": change.metric,
        **percent,
    }


def _text(compared: Sequence[Changed]) -> str:
    (first, _, loss), (last, _, gain) = compared[0], compared[-1]
    text = (
        f"{counted(len(compared), 'row')}, from {loss.change:+.1%}"
        f" ({label(first.row)}) to {gain.change:+.1%} ({label(last.row)})."
    )
    failed = [
        f"{label(result.row)} {comparison.verdict.value} {change.change:+.1%}"
        for result, comparison, change in compared
        if comparison.failed
    ]
    text += f" Failed: {listed(failed, 5)}." if failed else " None failed."
    text += " A tick below a row is its limit, a line through it the interval of 95 %."
    others = Counter(one.metric for _, _, one in compared if one.metric != TOK_S.title)
    for metric, count in others.items():
        text += f" Of {counted(count, 'row')} the change is that of {metric}."
    return text
