"""The published table's rows beside one another: the A100, literally, this engine."""

from __future__ import annotations

import re

from llama_perf.gate import baselines
from llama_perf.report.beside import beside_table, pairs
from llama_perf.report.render import as_markdown, as_text
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
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
        reference={each.id: then_of(each.row) for each in results if in_table(each)},
    )


def in_table(result: RowResult) -> bool:
    return result.row.reference_key in A100


def then_of(row: RowSpec) -> Measurement:
    return A100[row.reference_key]


def lines_of(table: str | None) -> list[list[str]]:
    assert table is not None
    return [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]


def test_a_row_of_both_sets_stands_beside_the_a100() -> None:
    report = report_of(
        measured(ENGINE[0], tok_s=322.14),
        measured(CPU_ROW),
        measured(LITERAL[0], tok_s=214.76),
    )
    header, _, line = lines_of(beside_table(report, style="github"))
    assert header == HEADER
    name = "llama-2-7b-chat-hf.none.bf16.compile"
    assert line == [name, "107.38", "214.76", "2.00x", "322.14", "3.00x", "1.50x"]
    for drawn in (as_text(report), as_markdown(report)):
        assert (
            "the published table: on the A100, taken literally here, on this" in drawn
        )
        assert "3.00x" in drawn


def test_a_row_that_was_not_measured_says_how_it_ended() -> None:
    report = report_of(
        unmeasured(Status.NOT_RUN, "pytorch/ao#2376", LITERAL[1]), measured(ENGINE[1])
    )
    *_, line = lines_of(beside_table(report, style="github"))
    assert line[1:] == ["9.61", "NOT_RUN", "-", "100.00", "10.41x", "-"]


def test_one_set_alone_has_no_such_table() -> None:
    for listed in (LITERAL, ENGINE):
        report = report_of(*map(measured, listed))
        assert beside_table(report) is None
        assert "taken literally" not in as_markdown(report)


def test_every_row_of_both_sets_finds_its_counterpart() -> None:
    report = report_of(*map(measured, (*LITERAL, *ENGINE)))
    found = pairs(report)
    assert [each.engine.row for each in found] == ENGINE
    assert [each.literal.row for each in found] == LITERAL
    assert len({each.name for each in found}) == 43
    assert all(each.then is not None for each in found)


def test_the_default_set_of_a_card_has_some_beside_one_another() -> None:
    report = report_of(*map(measured, selection.load_set("cuda")))
    schemes = [each.engine.row.quantization for each in pairs(report)]
    assert schemes == [None, "int8wo", "int4wo-64"]
