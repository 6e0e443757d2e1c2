"""A comparison of recordings as text, markdown, CSV, JSON and HTML."""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from llama_perf import report
from llama_perf.gate.diff import diff_of
from llama_perf.metrics import METRICS
from llama_perf.report.columns import Layout
from llama_perf.report.diff_table import METRIC_NAMES, parse_metrics
from llama_perf.results.diff import Diff
from llama_perf.results.measurement import StepWork
from llama_perf.results.recording import of_baseline, of_report
from llama_perf.results.run import Report, Status
from llama_perf.strict_json import from_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    INT8_CPU,
    OTHER,
    baseline_of_processes,
    measured,
    report_of,
    unmeasured,
)

LONGER = replace(CPU_ROW, max_new_tokens=300)
BROKEN = unmeasured(Status.INVALID, "it broke", CUDA_ROW)


def run(*results: Any, **changes: Any) -> Report:
    return report_of(*results, environment=replace(ENVIRONMENT, **changes))


def step(calls: float) -> StepWork:
    return StepWork(calls=calls, ms=1.0, operators=())


def compared(*reports: Report, **options: Any) -> Diff:
    names = ("first.json", "second.json", "third.json")
    sides = [
        of_report(report, source=name)
        for report, name in zip(reports, names, strict=False)
    ]
    return diff_of(sides, **options)


THEN = run(measured(step=step(100)), measured(OTHER), measured(CUDA_ROW))
NOW = run(
    measured(tok_s=60.0, step=step(110)),
    measured(OTHER),
    BROKEN,
    measured(LONGER),
    torch="3.0.0",
)
DIFF = compared(THEN, NOW)


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_text_has_a_line_a_row_and_below_it_all_that_differs() -> None:
    lines = report.draw(DIFF, "text").splitlines()
    assert lines[0].startswith("A: first.json, recorded 2026-")
    assert lines[1].startswith("B: second.json, recorded 2026-")
    assert lines[2] == "every row: tiny.none"
    assert lines[3].split("  ")[0] == "row"
    slower, same, broken = (re.split(r"  +", line) for line in lines[5:8])
    assert slower == [
        *("fp32.cpu.eager", "100.00", "60.00", "-40.0%", "-40.0%", "25.0% fixed"),
        *("1.00", "1.00", "+0.0%", "SLOWER"),
    ]
    assert same[0] == "fp32.cpu.compile"
    assert same[-1] == "SAME"
    assert broken == [
        *("bf16.eager", "100.00", "INVALID", "-", "-", "-", "1.00", "-", "-"),
        "INVALID",
    ]
    assert re.split(r"  +", lines[11]) == [
        *("fp32.cpu.eager", "calls a step", "100", "110", "+10.0%", "1.0%")
    ]
    rest = lines[13:]
    assert rest[0].startswith(f"SLOWER {CPU_ROW.id}: tok/s 100.00 -> 60.00 (-40.0%); ")
    assert "; calls a step 100 -> 110 (+10.0%, limit 1%)" in rest[0]
    assert rest[1] == f"INVALID {CUDA_ROW.id}: it broke"
    assert rest[2:] == [
        "changed from A to B: torch: 2.13.0 -> 3.0.0",
        "ratio change: of tok/s per GB/s of the device, which is judged",
        f"only in B: {LONGER.id}",
        "3 rows, B compared with A: 1 SLOWER, 1 SAME, 1 INVALID",
    ]


def test_markdown_says_the_same() -> None:
    text = report.draw(DIFF, "markdown")
    assert text.startswith("### llama-perf: 3 rows, B compared with A: 1 SLOWER, ")
    header, _, row, *_ = cells(text)
    assert list(zip(header, row, strict=True))[:4] == [
        ("row", "fp32.cpu.eager"),
        ("tok/s A", "100.00"),
        ("tok/s B", "60.00"),
        ("change", "-40.0%"),
    ]
    assert f"- **INVALID** `{CUDA_ROW.id}`: it broke\n" in text


def test_three_recordings_are_columns_with_the_change_from_the_first() -> None:
    third = run(measured(tok_s=110.0))
    text = report.draw(compared(THEN, NOW, third), "markdown")
    header, _, row, *_ = cells(text)
    assert header[:7] == [
        *("row", "tok/s A", "tok/s B", "change", "tok/s C", "change", "ratio change")
    ]
    assert row[1:6] == ["100.00", "60.00", "-40.0%", "110.00", "+10.0%"]
    # One that the last lacks is shown and not judged.
    assert "1 SAME, 2 not in both" in text
    assert cells(text)[3][-1] == "-"


def test_every_metric_can_be_asked_for() -> None:
    assert len(set(METRIC_NAMES)) == len(METRICS)
    asked = Layout(parse_metrics(["decode", "calls"]))
    lines = [line[:2] for line in cells(report.draw(DIFF, "markdown", asked))[5:]]
    names = ("fp32.cpu.eager", "fp32.cpu.compile", "bf16.eager")
    assert lines[2:] == [
        [names[0], "decode tok/s"],
        [names[0], "calls a step"],
        [names[1], "decode tok/s"],
        [names[2], "decode tok/s"],
    ]
    assert parse_metrics(["all"]) == tuple(metric.title for metric in METRICS)
    message = refusal(parse_metrics, ["decod"])
    assert message.startswith("metric: 'decod' is not allowed; did you mean decode? ")


def test_counts_and_decibels_change_by_a_difference() -> None:
    then, now = (run(measured(graph_breaks=count)) for count in (0, 2))
    lines = cells(report.draw(compared(then, now), "markdown"))
    assert lines[-1] == [CPU_ROW.id, "graph breaks", "0", "2", "+2", "0 more"]


def test_a_narrow_terminal_has_what_is_most_important() -> None:
    for width in (50, 80, 100):
        lines = report.draw(DIFF, "text", Layout(width=width)).splitlines()
        assert max(map(len, lines[3:8])) <= width
        assert "verdict" in lines[3]
        (left_out,) = (line for line in lines if line.startswith("not in "))
        assert left_out.startswith(f"not in {width} characters a line: ")
        assert left_out.endswith("peak GB A, peak GB B, change") or width == 100


def test_the_limit_says_what_it_follows_from() -> None:
    sides = (
        baseline_of_processes({CPU_ROW: [factor * speed for speed in ALIKE]})
        for factor in (1.0, 0.8)
    )
    diff = diff_of([of_baseline(side, source="it") for side in sides])
    header, _, row = cells(report.draw(diff, "markdown"))
    limit = row[header.index("limit")]
    assert re.fullmatch(r"\d+\.\d% noise", limit)
    assert (
        f"limit {limit.removesuffix(' noise')}); by the noise of 5 and 5 processes"
        in (report.draw(diff, "text"))
    )
    given = compared(THEN, NOW, limit=0.03)
    assert " 3.0% --limit " in report.draw(given, "text")
    assert "3 rows, B compared with A, limit 3%: " in report.draw(given, "text")


def test_csv_has_every_metric_of_every_row() -> None:
    lines = list(csv.DictReader(io.StringIO(report.draw(DIFF, "csv"))))
    # The two rows that both have were judged by a ratio, which has a line too.
    assert len(lines) == 3 * len(METRICS) + 2
    (ratio, _) = (line for line in lines if line["metric"].startswith("tok/s per "))
    assert [float(ratio[name]) for name in ("A", "B")] == pytest.approx([5.0, 3.0])
    assert ratio["worse"] == "True"
    calls = next(line for line in lines if line["metric"] == "calls a step")
    assert calls["id"] == CPU_ROW.id
    assert (calls["A"], calls["B"]) == ("100", "110")
    assert float(calls["change B"]) == pytest.approx(0.1)
    assert (calls["limit"], calls["beyond"], calls["worse"]) == ("0.01", "True", "True")
    assert calls["verdict"] == "SLOWER"


def test_json_is_read_again_and_jsonl_has_a_line_a_row() -> None:
    assert from_json(Diff, report.draw(DIFF, "json"), source="it") == DIFF
    lines = report.draw(DIFF, "jsonl").splitlines()
    document = json.loads(report.draw(DIFF, "json"))
    assert [json.loads(line) for line in lines] == document["rows"]


class _Page(HTMLParser):
    """The texts of table cells and badges of a page, and its charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.charts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._inside = tag in {"td", "th", "button", "span", "code"}
        if (chart := dict(attrs).get("data-spec")) is not None:
            self.charts.append(chart)

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.cells.append(data.strip())


@pytest.mark.parametrize("count", [2, 3])
def test_html_has_the_tables_and_a_chart_of_changes(count: int) -> None:
    pytest.importorskip("vl_convert")
    reports = (THEN, NOW, run(measured(tok_s=60.0, step=step(110))))[:count]
    text = report.draw(compared(*reports), "html")
    page = _Page(text)
    for word in ("fp32.cpu.eager", "100.00", "60.00", "-40.0%", "calls a step"):
        assert word in page.cells
    assert page.charts == ["changes"]
    spec = re.search(r'data-spec="changes">(.*?)</script>', text, re.DOTALL)
    assert spec is not None
    assert "fp32.cpu.eager" in spec[1]


def test_what_a_file_says_cannot_break_the_page() -> None:
    pytest.importorskip("vl_convert")
    attack = "<script>alert(1)</script>"
    broken = run(unmeasured(Status.INVALID, attack), measured(OTHER))
    text = report.draw(compared(run(measured(), measured(OTHER)), broken), "html")
    assert "&lt;script&gt;alert" in text
    assert attack not in text


def test_names_with_bars_stay_in_their_cells() -> None:
    rows = [replace(CPU_ROW, model="a|b"), INT8_CPU]
    both = compared(*[run(*map(measured, rows))] * 2)
    text = report.draw(both, "markdown")
    assert r"| a\|b." in text
