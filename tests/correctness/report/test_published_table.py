"""The table that compares the A100 with both sets of the published rows."""

from __future__ import annotations

import re

from llama_perf.gate import baselines
from llama_perf.report.table import published_rows, published_table
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.rows import selection
from tests.correctness.support import record_samples
from tests.correctness.support.record_samples import CPU_ROW, measured, unmeasured

LITERAL, ENGINE = selection.load_set("published"), selection.load_set("reference")
A100 = baselines.reference(baselines.default_folder())


def report_of(*results: RowResult) -> Report:
    keys = {result.id: result.row.reference_key for result in results}
    figures = {row_id: A100[key] for row_id, key in keys.items() if key in A100}
    return record_samples.report_of(*results, reference=figures)


def lines_of(report: Report) -> list[list[str]]:
    table = published_table(report, style="github")
    assert table is not None
    return [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]


def test_a_row_of_both_sets_is_compared_with_the_a100() -> None:
    report = report_of(
        measured(ENGINE[0], tok_s=322.14),
        measured(CPU_ROW),
        measured(LITERAL[0], tok_s=214.76),
    )
    header, _, line = lines_of(report)
    assert ", ".join(header) == (
        "row, A100 tok/s, published tok/s, speed-up, reference tok/s, speed-up,"
        " reference / published"
    )
    name = "llama-2-7b-chat-hf.none.bf16.compile"
    assert line == [name, "107.38", "214.76", "2.00x", "322.14", "3.00x", "1.50x"]
    for drawn in (as_text(report), as_markdown(report)):
        assert "the published rows: on the A100, with its settings here, on" in drawn
        assert "3.00x" in drawn


def test_a_row_that_was_not_measured_says_how_it_ended() -> None:
    broken = unmeasured(Status.NOT_RUN, "pytorch/ao#2376", LITERAL[1])
    *_, line = lines_of(report_of(broken, measured(ENGINE[1])))
    assert line[1:] == ["9.61", "NOT_RUN", "-", "100.00", "10.41x", "-"]


def test_every_row_of_both_sets_finds_its_counterpart() -> None:
    for listed in (LITERAL, ENGINE):
        one_set = report_of(*map(measured, listed))
        assert published_table(one_set) is None
        assert "the published rows" not in as_markdown(one_set)
    report = report_of(*map(measured, (*LITERAL, *ENGINE)))
    rows = [(literal.row, engine.row) for literal, engine in published_rows(report)]
    assert rows == list(zip(LITERAL, ENGINE, strict=True))
    lines = lines_of(report)[2:]
    assert len({line[0] for line in lines}) == 43
    assert "-" not in [line[1] for line in lines]


def test_the_default_set_of_a_gpu_has_some_rows_of_both_sets() -> None:
    report = report_of(*map(measured, selection.load_set("cuda")))
    schemes = [engine.row.quantization for _, engine in published_rows(report)]
    assert schemes == [None, "int8wo", "int4wo-64"]
