"""The table that compares the A100 with both sets of the published rows."""

from __future__ import annotations

import re

from llama_perf.gate import baselines
from llama_perf.report.markdown import as_markdown
from llama_perf.report.published_table import published_rows, published_table
from llama_perf.report.text import as_text
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.rows import selection
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)

LITERAL, ENGINE = selection.load_set("published"), selection.load_set("reference")
A100 = baselines.reference(baselines.default_folder())
HEADER = [
    "row",
    "A100 tok/s",
    "published tok/s",
    "speed-up",
    "reference tok/s",
    "speed-up",
    "reference / published",
]


def report_of(*results: RowResult) -> Report:
    return Report(
        started="2026-01-02T03:04:05+00:00",
        environment=ENVIRONMENT,
        results=results,
        reference={
            result.id: A100[result.row.reference_key]
            for result in results
            if result.row.reference_key in A100
        },
    )


def lines_of(table: str | None) -> list[list[str]]:
    assert table is not None
    return [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]


def test_a_row_of_both_sets_is_compared_with_the_a100() -> None:
    report = report_of(
        measured(ENGINE[0], tok_s=322.14),
        measured(CPU_ROW),
        measured(LITERAL[0], tok_s=214.76),
    )
    header, _, line = lines_of(published_table(report, style="github"))
    assert header == HEADER
    name = "llama-2-7b-chat-hf.none.bf16.compile"
    assert line == [name, "107.38", "214.76", "2.00x", "322.14", "3.00x", "1.50x"]
    for drawn in (as_text(report), as_markdown(report)):
        assert "the published rows: on the A100, with its settings here, on" in drawn
        assert "3.00x" in drawn


def test_a_row_that_was_not_measured_says_how_it_ended() -> None:
    report = report_of(
        unmeasured(Status.NOT_RUN, "pytorch/ao#2376", LITERAL[1]), measured(ENGINE[1])
    )
    *_, line = lines_of(published_table(report, style="github"))
    assert line[1:] == ["9.61", "NOT_RUN", "-", "100.00", "10.41x", "-"]


def test_one_set_has_no_such_table() -> None:
    for listed in (LITERAL, ENGINE):
        report = report_of(*map(measured, listed))
        assert published_table(report) is None
        assert "the published rows" not in as_markdown(report)


def test_every_row_of_both_sets_finds_its_counterpart() -> None:
    report = report_of(*map(measured, (*LITERAL, *ENGINE)))
    rows = published_rows(report)
    assert [row.engine.row for row in rows] == ENGINE
    assert [row.literal.row for row in rows] == LITERAL
    assert len({row.name for row in rows}) == 43
    assert all(row.a100 is not None for row in rows)


def test_the_default_set_of_a_gpu_has_some_rows_of_both_sets() -> None:
    report = report_of(*map(measured, selection.load_set("cuda")))
    schemes = [row.engine.row.quantization for row in published_rows(report)]
    assert schemes == [None, "int8wo", "int4wo-64"]
