"""What the specs of all charts share: looks by group, the filter of rows, the end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from llama_perf.report.html.chart_values import LOOKS_OF_FAMILIES, Datum, with_stars

HEIGHT = 320
_IS_VISIBLE = "visible === null || indexof(visible, datum.row) >= 0"


def drawing(name: str) -> alt.Chart:
    """A chart of the data source with this name."""
    return alt.Chart(alt.NamedData(name))


def of_rows(name: str = "rows") -> alt.Chart:
    """The same of data with the ids of rows, to which the page's filter applies."""
    return drawing(name).transform_filter(_IS_VISIBLE)


def looks(
    field: str, known: Mapping[str, tuple[str, str]], used: Iterable[str]
) -> dict[str, Any]:
    """The channels by which groups differ, in colour and shape, with one legend."""
    present = set(used)
    names = [name for name in known if name in present]
    colours, shapes = zip(*(known[name] for name in names), strict=True)
    legend = alt.Legend(title=None, symbolOpacity=1, columns=2)
    return {
        "color": alt.Color(
            field,
            type="nominal",
            legend=legend,
            scale=alt.Scale(domain=names, range=list(colours)),
        ),
        "shape": alt.Shape(
            field,
            type="nominal",
            legend=legend,
            scale=alt.Scale(domain=names, range=list(shapes)),
        ),
    }


def tooltip(**titles: str) -> list[alt.Tooltip]:
    """The fields that are shown of a mark that is pointed at, with their titles."""
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]


def family_points(base: alt.Chart, points: Sequence[Datum], **titles: str) -> alt.Chart:
    """Points of measured rows by the family of their schemes.

    Their tooltips also have the fields in `titles`.
    """
    families = list(dict.fromkeys(one["family"] for one in points))
    shown = {"row": "row", "scheme": "scheme", "tok_s": "tok/s of one sequence"}
    chart: alt.Chart = base.mark_point(filled=True, size=70, opacity=0.8).encode(
        tooltip=[
            alt.Tooltip(f"{name}:N", title=title)
            for name, title in (shown | titles).items()
        ],
        **looks("family", with_stars(LOOKS_OF_FAMILIES, families), families),
    )
    return chart


def spec_of(
    *layers: alt.Chart,
    height: int = HEIGHT,
    data: Mapping[str, Sequence[Datum]] | None = None,
) -> dict[str, Any]:
    """The spec, which altair has checked, without what the page decides.

    With `data`, the values of its data sources, it is a chart of many rows: the page
    says which of them are visible, by the value of a parameter.
    """
    spec: dict[str, Any] = alt.layer(*layers).properties(height=height).to_dict()
    for name in ("config", "$schema"):
        spec.pop(name, None)
    if data is not None:
        spec["datasets"] = dict(data)
        spec["params"] = [{"name": "visible", "value": None}]
    return spec
