"""A page as text: what is escaped, what it refuses, which figures it sorts by."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llama_perf import report
from llama_perf.errors import SpecError
from llama_perf.report.columns import ALL, NOTHING, columns
from llama_perf.report.html.page import Chart, Section, json_in_html, page
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.run import Comparison, Verdict
from llama_perf.rows.selection import load_set
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.page_samples import HOSTILE, hostile_run, many_rows
from tests.correctness.support.record_samples import (
    CPU_ROW,
    chosen,
    measured,
    report_of,
)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script" and self.cdata_elem:
            self.scripts[-1] += data


def tags(html: str) -> list[str]:
    return [tag for tag, _ in Elements(html).found]


def test_text_of_others_makes_no_element() -> None:
    run = many_rows(5)
    harmless = report.draw(replace(run, note="harmless"), "html")
    hostile = report.draw(replace(run, note=HOSTILE), "html")
    assert tags(hostile) == tags(harmless)
    drawn = Elements(report.draw(hostile_run(), "html"))
    assert all("alert" not in script for script in drawn.scripts if "{" not in script)
    names = {name for _, attributes in drawn.found for name in attributes}
    assert not {name for name in names if name.startswith("on")}


def test_data_in_the_page_cannot_end_its_script() -> None:
    value = {"text": HOSTILE + "<!-- \u2028"}
    text = json_in_html(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_a_chart_has_its_text_as_its_description() -> None:
    chart = Chart(
        name="c", title="T", text="What.", spec={"$schema": "x", "mark": "bar"}
    )
    drawn = Elements(page("title", [Section(title="Charts", charts=[chart])]))
    specs = [json.loads(text) for text in drawn.scripts if text.startswith("{")]
    assert specs == [{"description": "T. What.", "mark": "bar"}]


def test_the_page_may_do_nothing_but_run_its_own_scripts() -> None:
    drawn = Elements(report.draw(many_rows(2), "html"))
    [policy] = [
        str(attributes["content"])
        for tag, attributes in drawn.found
        if tag == "meta" and "http-equiv" in attributes
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert policy.count("unsafe-inline") == 1, "for style"
    addresses = [
        value
        for _, attributes in drawn.found
        for name, value in attributes.items()
        if name in {"src", "href", "action"}
    ]
    assert all(str(address).startswith(("#", "data:")) for address in addresses)


def test_a_missing_package_is_one_line_before_anything_is_drawn(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    report.write(many_rows(2), path)
    missing = "html needs vl_convert, which is not installed"
    install = "pip install 'llama-perf[html]'"
    monkeypatch.setattr(report, "find_spec", lambda name: name != "vl_convert" or None)
    monkeypatch.setattr(report, "_drawn", None)
    line = cli.refusal("report", str(path), "--format", "html")
    assert line == f"format: 'html' is not allowed; {missing}: {install}"
    with pytest.raises(
        SpecError, match=r"^report: .*run.html' is not allowed; html ne"
    ):
        report.check_path(tmp_path / "run.html")


def test_the_values_of_a_column_are_those_of_its_cells() -> None:
    run = many_rows(40)
    chosen = columns(run, [result.id for result in run.results], ALL)
    figures = [column for column in chosen if column.is_figure]
    assert len(figures) > 8
    for column in figures:
        are_known = [value is not None for value in column.values]
        assert are_known == [cell != NOTHING for cell in column.cells], column.name
    speed = next(column for column in chosen if column.name == "tok/s")
    assert list(speed.values) == [
        result.measurement and result.measurement.tok_s for result in run.results
    ]


def test_the_note_on_a_run_stands_in_every_report() -> None:
    run = report_of(measured(), note="These figures are made up.")
    assert "\nnote: These figures are made up.\n" in as_text(run)
    assert "\n- note: These figures are made up.\n" in as_markdown(run)
    html = report.draw(run, "html")
    assert html.count("These figures are made up.") == 1, "as a banner"
    assert "\nnote: " not in as_text(replace(run, note=None))


def test_every_verdict_has_a_place_in_the_page() -> None:
    rows = [
        replace(CPU_ROW, max_new_tokens=place + 10) for place in range(len(Verdict))
    ]
    judged = [
        Comparison(id=row.id, verdict=verdict, reason="why", failed=False)
        for row, verdict in zip(rows, Verdict, strict=True)
    ]
    run = report_of(*map(measured, rows), measured(), comparisons=tuple(judged))
    drawn = report.draw(run, "html")
    for word in [*(verdict.value for verdict in Verdict), "MEASURED"]:
        assert f"{word}</span>" in drawn


def test_a_run_without_rows_is_a_page() -> None:
    assert "0 rows" in report.draw(report_of(), "html")


def test_tables_of_other_kinds_are_there_and_escaped() -> None:
    result = measured(autoquant=(chosen("int8wo"), chosen("<b>none</b>")))
    drawn = report.draw(report_of(result), "html")
    assert "What autoquant chose" in drawn
    assert "&lt;b&gt;none&lt;/b&gt;" in drawn
    assert "<b>" not in drawn.partition("</main>")[0]
    assert "Published rows" not in drawn
    both = [measured(load_set(name)[0]) for name in ("published", "reference")]
    assert "Published rows" in report.draw(report_of(*both), "html")
