"""What tests ask of the specs of charts."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import altair as alt
import jsonschema
import vl_convert

from llama_perf.report.html.page import Chart

Spec = dict[str, Any]


@cache
def _validator() -> Any:
    schema = alt.load_schema()
    return jsonschema.validators.validator_for(schema)(schema)


def check(chart: Chart) -> None:
    """Fail unless the spec is Vega-Lite, and its axes have titles."""
    # A schema has nothing to say of data, and takes long to say it.
    _validator().validate(chart.spec | {"datasets": {}})
    assert chart.title.endswith((" faster)", " closer)", " smaller)"))
    assert chart.text.endswith(".")
    for axis in axes(chart.spec):
        assert "title" in axis, axis


def axes(spec: Spec) -> list[Spec]:
    """The positions of the layers that have a scale of their own."""
    encodings = [layer["encoding"] for layer in spec["layer"]]
    places = [one[name] for one in encodings for name in ("x", "y") if name in one]
    return [place for place in places if "scale" in place]


def drawn(chart: Chart, values: Sequence[Spec] | None = None) -> str:
    """The SVG of a chart; `values` are those of its data source, if it has none."""
    spec = chart.spec
    if values is not None:
        spec = spec | {"datasets": {chart.name: values}}
    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg
