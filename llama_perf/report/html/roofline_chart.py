"""The roofline: bytes that a token reads by the speed, below the device's bandwidth."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import altair as alt

from llama_perf.report.html.chart_values import Datum, label, rounded
from llama_perf.report.html.measured_rows import Measured, measured, point
from llama_perf.report.html.page import Chart
from llama_perf.report.html.specs import drawing, family_points, of_rows, spec_of
from llama_perf.results.measurement import GB, Measurement
from llama_perf.results.run import Report, RowResult
from llama_perf.words import counted

_SHARES = (0.5, 0.25)
# Of one device: bandwidths further apart have a line each.
_ALIKE = 0.05

Domain = tuple[float, float]


def roofline(report: Report) -> Chart | None:
    """The chart of all measured rows; None if there is none."""
    rows = [one for one in measured(report) if one[1].model_size_bytes > 0]
    if not rows:
        return None
    points = [_point(*one) for one in rows]
    ceilings = _ceilings(report, rows)
    sizes = [one["gb"] for one in points]
    x_domain = rounded(min(sizes) / 1.3), rounded(max(sizes) * 1.3)
    speeds = [one["tok_s"] for one in points]
    # All lines end at the right, where their labels are.
    at_right = [ceiling / x_domain[1] for ceiling in ceilings]
    speeds += [*at_right, *(speed * min(_SHARES) for speed in at_right)]
    y_domain = rounded(min(speeds) / 1.4), rounded(max(speeds) * 1.4)
    x = alt.X("gb:Q", **_log_axis("weights that a token reads, GB", x_domain))
    y = alt.Y("tok_s:Q", **_log_axis("tok/s of one sequence", y_domain))
    marks = family_points(
        of_rows().encode(x=x, y=y),
        points,
        gb="GB a token",
        gb_s="GB/s",
        share="of the bandwidth",
    )
    layers, data = [marks], {"rows": points}
    if ceilings:
        data["lines"] = list(_lines(ceilings, x_domain))
        base = drawing("lines").encode(x=x, y=y, detail="label:N")
        dash = alt.StrokeDash("dash:N", scale=None)
        words = base.transform_filter("datum.is_end")
        layers = [
            base.mark_line(clip=True, strokeWidth=1.5).encode(strokeDash=dash),
            words.mark_text(align="right", dx=-4, dy=10).encode(text="label:N"),
            marks,
        ]
    return Chart(
        name="roofline",
        title="Roofline: speed by the bytes of a token (up is faster)",
        text=_text(rows, ceilings),
        spec=spec_of(*layers, data=data),
    )


def _log_axis(title: str, domain: Domain) -> dict[str, Any]:
    return {
        "title": title,
        "scale": alt.Scale(type="log", domain=list(domain), nice=False),
        "axis": alt.Axis(format="~g", tickCount=6),
    }


def _point(result: RowResult, figures: Measurement) -> Datum:
    share = figures.device_bandwidth_share
    return {
        **point(result, figures),
        "gb": rounded(figures.model_size_bytes / GB),
        "gb_s": rounded(figures.bandwidth_gb_s),
        "share": "not known" if share is None else f"{share:.1%}",
    }


def _ceilings(report: Report, rows: Measured) -> list[float]:
    """The bandwidth in GB/s, or the largest and the smallest of those of the rows."""
    own = [one.device_bandwidth_gb_s for _, one in rows if one.device_bandwidth_gb_s]
    if own and max(own) > min(own) * (1 + _ALIKE):
        return [max(own), min(own)]
    usual = report.device_bandwidth_gb_s or max(own, default=None)
    return [] if usual is None else [usual]


def _lines(ceilings: Sequence[float], x_domain: Domain) -> Iterator[Datum]:
    """Both ends of each line: the bandwidths, and shares of the largest."""
    lines = [(f"{gb_s:.0f} GB/s", gb_s, [1, 0]) for gb_s in ceilings]
    lines += [(f"{share:.0%}", ceilings[0] * share, [4, 4]) for share in _SHARES]
    for words, gb_s, dash in lines:
        for gb in x_domain:
            yield {
                "gb": gb,
                "tok_s": rounded(gb_s / gb),
                "label": words,
                "is_end": gb == x_domain[1],
                "dash": dash,
            }


def _text(rows: Measured, ceilings: Sequence[float]) -> str:
    if not ceilings:
        return (
            f"{counted(len(rows), 'row')}. The bandwidth of the device was not"
            " measured, so there is no line."
        )
    if len(ceilings) > 1:
        largest, smallest = (f"{one:.0f}" for one in ceilings)
        text = (
            "Solid lines: the largest and the smallest bandwidth that was measured with"
            f" a row, {largest} and {smallest} GB/s."
        )
    else:
        text = f"Solid line: the bandwidth of the device, {ceilings[0]:.0f} GB/s."
    text += " Dashed: half and a quarter of it."
    shares = [
        (share, label(result.row))
        for result, figures in rows
        if (share := figures.device_bandwidth_share) is not None
    ]
    if not shares:
        return text
    by_share = itemgetter(0)
    (most, best), (least, worst) = max(shares, key=by_share), min(shares, key=by_share)
    text += f" Of the bandwidth that was measured with it, {best} reaches {most:.1%}"
    text += f", the most, and {worst} {least:.1%}, the least."
    if above := sum(share > 1 for share, _ in shares):
        text += f" {counted(above, 'row')} above it: a cache may hold their weights."
    return text
