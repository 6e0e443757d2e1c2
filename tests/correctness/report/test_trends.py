"""Trends in every format, and their curves and columns."""

import csv
import io
import json
import re
from dataclasses import replace

import altair
import pytest

from llama_perf import report as reports
from llama_perf.gate.history import trends
from llama_perf.report.columns import Layout
from llama_perf.report.html.page import Chart
from llama_perf.report.html.trends import _charts
from llama_perf.report.trends import BLOCKS, IN_ASCII, curve
from llama_perf.results import history
from llama_perf.results.trends import Trends
from tests.correctness.support.histories import KEY, lines, night, run, steady
from tests.correctness.support.record_samples import CLOSENESS, CPU_ROW, INT8_CPU


@pytest.fixture(scope="module")
def document() -> Trends:
    """A row that lost and grew, one that is steady, and one of another device."""
    lost = lines([*steady(40), *steady(10, 0.9)])
    lost[44:] = [replace(line, peak_memory_bytes=2 * 10**9) for line in lost[44:]]
    lost[3] = replace(lost[3], disturbed="by a <b>neighbour</b>", tok_s=1.0)
    other = [replace(line, id=INT8_CPU.id) for line in lines(steady(50))]
    rows = [*trends(KEY, [*lost, *other]), *trends("other", lines(steady(4)))]
    return Trends(last=30, rows=tuple(rows), note="all of it is made up")


def test_text_has_a_table_for_each_device(document: Trends) -> None:
    text = reports.draw(document, "text")
    here, there = text.split("\nother\n")
    assert here.splitlines()[:2] == [KEY, "every row: tiny.fp32.cpu.eager"]
    header, _, first, second = here.splitlines()[2:6]
    assert re.split(r"  +", header.strip()) == [
        *("row", "runs", "tok/s", "median of 30", "since the first", "last change"),
        *("peak GB", "last change", "tok/s, last 30"),
    ]
    cells = re.split(r"  +", first)
    assert cells[:8] == [
        *("none", "50", "90.36", "99.80", "-9.6%", "-10.0%, 10 runs ago", "2.00"),
        "+100.0%, 6 runs ago",
    ]
    assert re.split(r"  +", second)[5] == "-"
    assert f"{CPU_ROW.id}: tok/s 100.00 -> 90.05 (-10.0%, 10 runs since)" in text
    assert f"{CPU_ROW.id}: peak memory 1.000 GB -> 2.000 GB (+100.0%, 6 runs" in text
    assert text.splitlines()[-2:] == [
        "all of it is made up",
        "1 figure was disturbed and left out of medians, curves and change points",
    ]
    assert "change" in there


def test_a_measured_closeness_has_a_column() -> None:
    measured = trends(KEY, lines(steady(4), closeness=CLOSENESS))
    text = reports.draw(Trends(last=30, rows=tuple(measured)), "text")
    header, _, line = text.splitlines()[1:4]
    place = header.index("closeness dB") + len("closeness dB")
    assert line[:place].split()[-1] == "12.0"


def test_a_narrow_terminal_has_what_fits(document: Trends) -> None:
    for width in (60, 80, 100):
        text = reports.draw(document, "text", Layout(width=width))
        table = text.split("\n\n")[0].splitlines()[2:]
        assert max(map(len, table)) <= width
        assert "tok/s" in table[0]


def test_markdown(document: Trends) -> None:
    text = reports.draw(document, "markdown")
    assert f"### Trends on {KEY}" in text
    assert "| none " in text


def test_csv_has_a_line_for_each_row_and_run(document: Trends) -> None:
    read = list(csv.DictReader(io.StringIO(reports.draw(document, "csv"))))
    assert len(read) == 104
    began = [one for one in read if one["tok_s_change"] or one["peak_memory_change"]]
    assert [(one["started"], one["id"]) for one in began] == [
        *((night(40), CPU_ROW.id), (night(44), CPU_ROW.id))
    ]
    assert float(began[0]["tok_s_change"]) == pytest.approx(-0.1, abs=0.001)
    assert read[3]["disturbed"] == "by a <b>neighbour</b>"
    lines = reports.draw(document, "jsonl").splitlines()
    for cells, line in zip(read, map(json.loads, lines), strict=True):
        assert list(line) == list(cells)
        as_text = {name: str(value or "") for name, value in line.items()}
        assert as_text == cells


def test_a_curve_is_as_high_as_its_values_differ() -> None:
    assert curve([]) == "-"
    assert curve([100.0]) == curve([1.0]) in BLOCKS
    assert curve([50.0, 100.0]) == BLOCKS[0] + BLOCKS[-1]
    # Half a percent of noise is no mountain.
    assert len({*curve([100.0, 100.5] * 5)}) <= 2
    long = curve([100.0] * 100 + [90.0] * 100)
    assert long == BLOCKS[-1] * 10 + BLOCKS[0] * 10
    assert long.translate(IN_ASCII) == "#" * 10 + "_" * 10
    assert IN_ASCII.keys() == {ord(block) for block in BLOCKS}


def charts_of(document: Trends) -> list[Chart]:
    return [chart for trend in document.rows for chart in _charts(trend)]


def test_a_page_has_a_chart_for_each_row_and_for_what_changed(document: Trends) -> None:
    text = reports.draw(document, "html")
    charts = charts_of(document)
    assert [chart.title for chart in charts] == [
        f"{CPU_ROW.id}: tok/s",
        f"{CPU_ROW.id}: peak memory",
        f"{INT8_CPU.id}: tok/s",
        f"{CPU_ROW.id}: tok/s",
    ]
    assert len({chart.name for chart in charts}) == 4
    for chart in charts:
        assert f'id="{chart.name}"' in text
    assert charts[0].text == (
        "50 runs from 2026-05-01 to 2026-06-19; 1 disturbed (hollow); -10.0% on"
        f" 2026-06-10 ({39:012x} to {40:012x})."
    )
    assert "<b>neighbour" not in text
    assert 'data-value="-10.0"' in text


def test_the_charts_are_what_vega_lite_draws(document: Trends) -> None:
    for chart in charts_of(document):
        # It checks the spec against Vega-Lite's schema.
        altair.Chart.from_dict(chart.spec)
        points = chart.spec["data"]["values"]
        assert {"run", "value", "commit", "verdict", "disturbed"} == points[0].keys()
    marks = charts_of(document)[0].spec["layer"][2]["data"]["values"]
    assert marks[0]["size"] == "-10.0% loss"


def test_two_rows_under_one_id_are_one_trend_of_the_newest() -> None:
    (line,) = history.lines_of(run(9))
    (trend,) = trends(KEY, [*lines(steady(3)), replace(line, fingerprint="other")])
    assert [one.started for one in trend.lines] == [night(9)]
