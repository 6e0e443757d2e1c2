"""The page of any document: its style, its script, and charts that draw themselves.

All of it is one file. A Content-Security-Policy forbids the page every connection and
every script but its own. What comes from data is escaped, in HTML by the template and
in JSON by `json_in_html`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = Path(__file__).parent
_NOTHING = Markup("")
# In the order in which they run: tables are of use before the charts' library is read.
_SCRIPTS = ("tables.js", "charts.js")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A Vega-Lite chart with its data inside.

    `name` is its id in the page, `text` what it shows, in words: it stands below the
    title, and a screen reader reads it in place of the picture. A chart without a
    `width` takes that of the page. Background and text have no colours of their own. A
    parameter named `visible` gets the ids of the rows that the page shows, null for
    all.
    """

    name: str
    title: str
    text: str
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a page under a heading of its own: HTML, then charts."""

    title: str
    html: Markup = _NOTHING
    charts: Sequence[Chart] = ()

    @property
    def name(self) -> str:
        """Its id in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, sections: Sequence[Section], *, note: str | None = None) -> str:
    """A document as HTML; `note` is what a reader has to know before all else."""
    charts = [chart for section in sections for chart in section.charts]
    scripts = list(_scripts(has_charts=bool(charts)))
    return render(
        "page.html.j2",
        title=title,
        sections=sections,
        note=note,
        style=Markup(_text("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        specs={chart.name: json_in_html(_spec(chart)) for chart in charts},
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, **values: object) -> Markup:
    """A template of this folder with these values; what is no `Markup` is escaped."""
    return Markup(_environment().get_template(name).render(**values))


def json_in_html(value: object) -> Markup:
    """The value as JSON that cannot end the <script> element that it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _spec(chart: Chart) -> dict[str, Any]:
    # The library warns of a schema of another minor version than its own.
    rest = {name: value for name, value in chart.spec.items() if name != "$schema"}
    return {"description": f"{chart.title}. {chart.text}"} | rest


@cache
def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed, which take a second to put together."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # It stands in a <script> element.
    return bundle.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _scripts(*, has_charts: bool) -> Iterator[str]:
    for name in _SCRIPTS:
        if name == "charts.js" and has_charts:
            yield _library()
        yield _text(name)


def _policy(scripts: Sequence[str]) -> str:
    """What the page may do: run these scripts, have a style, and nothing else."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(
        f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
