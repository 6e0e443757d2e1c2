"""Charts of one row, one spec each for all rows: `row_data` has a row's values.

A chart of no values is not to be drawn.
"""

import altair as alt

from llama_perf.report.html.chart_values import COLOURS, GREY, ORANGE
from llama_perf.report.html.page import Chart
from llama_perf.report.html.row_data import (
    BEFORE,
    LEAST_TOKENS,
    MEMORY,
    NOW,
    SAMPLES,
    STEP,
    TOKENS,
)
from llama_perf.report.html.specs import drawing, spec_of, tooltip

_GROUPS = [
    f"{NOW}: samples",
    f"{NOW}: processes",
    f"{BEFORE}: processes",
    f"{BEFORE}: samples",
]
# A segment below this share of its bar has no room for its number.
_LEAST_SEGMENT = 0.03


def row_charts() -> list[Chart]:
    """The charts of a row. Each draws the data source that has its name."""
    return [_samples(), _step(), _memory(), _tokens()]


def _samples() -> Chart:
    x_scale = alt.Scale(zero=False, nice=False, padding=16)
    base = drawing(SAMPLES).encode(
        x=alt.X("tok_s:Q", title="tok/s", scale=x_scale),
        y=alt.Y("group:N", title=None, sort=_GROUPS, scale=alt.Scale(domain=_GROUPS)),
        tooltip=tooltip(group="of", tok_s="tok/s"),
    )
    single = base.transform_filter("!datum.median")
    medians = base.transform_filter("datum.median")
    return Chart(
        name=SAMPLES,
        title="Samples and processes (right is faster)",
        text=(
            "Each thin line is a sample, or a process by its median sample. The thick"
            " line with a number is the median. This run's processes are those that"
            " decided on the row, where its own did not."
        ),
        spec=spec_of(
            single.mark_tick(thickness=1.5, size=18, opacity=0.6),
            medians.mark_tick(thickness=4, size=18, color=ORANGE),
            medians.mark_text(dy=-17).encode(text="tok_s:N"),
            height=200,
        ),
    )


def _stacked(
    name: str, unit: str, *, has_measured: bool = False, **words: str
) -> Chart:
    """Bars of parts, each with its number, by which the legend names it.

    With `has_measured` a mark above a bar is at what was measured as a whole.
    """
    base = drawing(name).encode(
        y=alt.Y(
            "when:N",
            title=None,
            sort=[NOW, BEFORE],
            scale=alt.Scale(domain=[NOW, BEFORE], paddingInner=0.4, paddingOuter=0.3),
        )
    )
    parts = (
        base.transform_filter("isValid(datum.part)")
        .transform_joinaggregate(total="sum(value)", groupby=["when"])
        .transform_calculate(
            number="substring(datum.part, 0, 1)",
            whole="isValid(datum.name) ? datum.name : slice(datum.part, 2)",
        )
        .encode(
            order=alt.Order("part:N", sort="ascending"),
            tooltip=tooltip(when="of", whole="part", value=unit),
        )
    )
    bars = parts.mark_bar().encode(
        x=alt.X("value:Q", title=unit, stack="zero"),
        color=alt.Color(
            "part:N",
            scale=alt.Scale(range=[*COLOURS, GREY, "#BBBBBB"]),
            legend=alt.Legend(title=None, columns=1),
        ),
    )
    # Black shows on each of the bars' colours, whatever the page's are.
    numbers = parts.transform_filter(
        f"datum.value >= {_LEAST_SEGMENT} * datum.total"
    ).mark_text(color="black")
    middle = alt.X("value:Q", stack="zero", bandPosition=0.5)
    layers = [bars, numbers.encode(x=middle, text="number:N")]
    if has_measured:
        layers.append(
            base.transform_filter("isValid(datum.measured)")
            .mark_text(text="\u25bc", dy=-25)
            .encode(x="measured:Q", tooltip=tooltip(when="of", measured=unit))
        )
    return Chart(name=name, spec=spec_of(*layers, height=130), **words)


def _step() -> Chart:
    return _stacked(
        STEP,
        "ms a step",
        has_measured=True,
        title="Time of a decoding step by operator (shorter is faster)",
        text=(
            "The times of operators, on a GPU its kernels, are a profiler's, which"
            " makes them longer. The triangle is at the time of a step without it. What"
            " that step took beyond all operators is outside operators: in Python or in"
            " waits."
        ),
    )


def _memory() -> Chart:
    return _stacked(
        MEMORY,
        "GB",
        title="Peak memory by what takes it (shorter is smaller)",
        text=(
            "Workspace is what tensors took beside weights and caches. The rest is what"
            " the allocator held without a tensor; on a CPU, what the process grew by"
            " beside its tensors."
        ),
    )


def _tokens() -> Chart:
    base = drawing(TOKENS).encode(
        x=alt.X(
            "ms:Q",
            title="time of a token, ms",
            scale=alt.Scale(zero=False, nice=False, padding=16),
            axis=alt.Axis(tickCount=5),
        ),
        y=alt.Y(
            "percent:Q",
            title="tokens that took no longer, %",
            scale=alt.Scale(domain=[0, 100]),
            axis=alt.Axis(values=[0, 25, 50, 75, 90, 100]),
        ),
    )
    named = base.transform_filter("indexof([50, 90, 99], datum.percent) >= 0")
    words = named.transform_calculate(words="'p' + datum.percent + ' ' + datum.ms")
    # Below the line: to the right where it is steep, to the left where it ends.
    steep = words.transform_filter("datum.percent < 99")
    end = words.transform_filter("datum.percent >= 99")
    return Chart(
        name=TOKENS,
        title="Times of single tokens (left is faster)",
        text=(
            "The time between a token and the one before it, over all samples of the"
            " row in this run, from the fastest hundredth to the slowest. Of fewer than"
            f" {LEAST_TOKENS} tokens nothing is drawn, and no percentile that fewer"
            " than 5 tokens are beyond."
        ),
        spec=spec_of(
            base.mark_line(),
            base.mark_point(filled=True, size=40).encode(
                tooltip=tooltip(percent="%", ms="ms")
            ),
            steep.mark_text(align="left", dx=8, dy=8).encode(text="words:N"),
            end.mark_text(align="right", dy=14).encode(text="words:N"),
            height=220,
        ),
    )
