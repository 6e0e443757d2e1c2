"""A report as text, markdown and JSON, and the command that draws one again."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf import report
from llama_perf.errors import SpecError
from llama_perf.report.table import published_rows, published_table
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results import baselines
from llama_perf.results.measurement import ValueCheck
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.rows import selection
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    FIXED_LIMIT,
    MEASUREMENT,
    OTHER,
    baseline_of,
    chosen,
    compare,
    measured,
    report_of,
    unmeasured,
)

REFUSED = unmeasured(Status.NOT_RUN, "no card", CUDA_ROW)


def compared(*results: RowResult, **changes: Any) -> Report:
    """The same, compared with a baseline of CPU_ROW and OTHER."""
    baseline = baseline_of(measured(), measured(OTHER))
    verdicts = tuple(compare(result, baseline) for result in results)
    return report_of(*results, comparisons=verdicts, **changes)


def cells(markdown: str) -> list[list[str]]:
    """The cells of a markdown table, split where GitHub splits them."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]


def test_every_figure_stands_in_its_column() -> None:
    check = ValueCheck(
        signal_to_noise_db=43.2, least_db=14, against="b", tokens=9, ties=0, seconds=1
    )
    slower = measured(tok_s=60.0, peak_memory_bytes=1_250_000_000, check=check)
    header, _, row = cells(as_markdown(compared(slower)))
    shown = iter(zip(header, row, strict=True))
    expected = [
        ("row", CPU_ROW.id),
        ("tok/s", "60.00"),
        ("spread %", "2.5"),
        ("change", "-40.0%"),
        ("decode tok/s", "110.00"),
        ("first token ms", "50.0"),
        ("GB/s", "10.00"),
        ("% of bandwidth", "50.0"),
        ("peak GB", "1.25"),
        ("change", "+25.0%"),
        ("model GB", "0.50"),
        ("check dB", "43"),
        ("verdict", "SLOWER"),
    ]
    assert all(pair in shown for pair in expected), "in this order, others between"
    header, _, row = cells(as_markdown(report_of(REFUSED)))
    assert row == [CUDA_ROW.id, *["-"] * (len(header) - 2), "NOT_RUN"]


def test_text_says_why_and_what_a_reader_must_know() -> None:
    report = compared(
        measured(tok_s=60.0, injected_slowdown=0.5),
        measured(OTHER, weights_notes=("model.safetensors is not read",)),
        device_bandwidth_gb_s=20.0,
        baseline_source="baseline.json, recorded then",
        environment_changes=("torch: 2.12.0 -> 2.13.0",),
        stale=("gone", "too"),
    )
    text = as_text(report)
    lines = text.splitlines()
    assert lines[0] == "every row: tiny.none.fp32.cpu"
    assert [line.split()[0] for line in lines[3:5]] == ["eager", "compile"]
    assert lines[6:] == [
        f"SLOWER {CPU_ROW.id}: tok/s 100.00 -> 60.00 (-40.0%); tok/s per GB/s of the"
        " device 5.000 -> 3.000 (-40.0%, limit 25.0%)" + FIXED_LIMIT,
        "device: Some CPU (cpu-some-2c), 20.0 GB/s measured in this run",
        "torch 2.13.0, torchao 0.18.0, python 3.11.7",
        "weights: synthetic",
        "note on the weights: model.safetensors is not read",
        f"injected slowdown of 50% in {CPU_ROW.id}",
        "baseline: baseline.json, recorded then",
        "changed since the baseline: torch: 2.12.0 -> 2.13.0",
        "in the baseline but in no set or --rows file: gone, too",
        "2 rows: 2 run, 0 NOT_RUN (1 SLOWER, 1 SAME)",
    ]
    marked = as_markdown(report)
    assert marked.startswith(f"### llama-perf: {lines[-1]}\n")
    assert f"- **SLOWER** `{CPU_ROW.id}`: tok/s 100.00 -> 60.00 (" in marked
    for line in lines[7:-1]:
        assert f"- {line}\n" in marked


@pytest.mark.parametrize(
    ("report", "summary"),
    [
        (report_of(), "0 rows: 0 run, 0 NOT_RUN"),
        (report_of(REFUSED), "1 row: 0 run, 1 NOT_RUN"),
        (
            report_of(measured(), measured(OTHER), REFUSED),
            "3 rows: 2 run, 1 NOT_RUN (2 MEASURED)",
        ),
        (
            compared(measured(), unmeasured(Status.INVALID, "it broke", OTHER)),
            "2 rows: 2 run, 0 NOT_RUN (1 SAME, 1 INVALID)",
        ),
        (
            compared(measured(), REFUSED, selected=5),
            "2 rows: 1 run, 1 NOT_RUN (1 SAME); stopped before 3 more",
        ),
    ],
)
def test_the_summary_counts_what_was_run_and_what_was_not(
    report: Report, summary: str
) -> None:
    assert as_text(report).splitlines()[-1] == summary
    assert as_markdown(report).splitlines()[0] == f"### llama-perf: {summary}"


def test_a_bar_in_a_cell_ends_no_cell() -> None:
    row = replace(CPU_ROW, model="a|b\\|c")
    header, _, shown = cells(as_markdown(report_of(measured(row))))
    assert len(shown) == len(header)
    assert shown[0].replace(r"\|", "|") == row.id
    assert row.id in as_text(report_of(measured(row)))


def test_the_a100_stands_only_where_a_row_is_in_its_table() -> None:
    then = replace(MEASUREMENT, tok_s=107.38, device_bandwidth_gb_s=2039.0)
    broken_row = replace(CPU_ROW, max_new_tokens=9)
    broken = unmeasured(Status.INVALID, "it broke", broken_row)
    without_table = report_of(measured(), measured(OTHER), broken)
    for draw in (as_text, as_markdown):
        assert "A100" not in draw(without_table)
    figures = {OTHER.id: then, broken_row.id: then}
    with_table = replace(without_table, reference=figures)
    header, _, *rows = cells(as_markdown(with_table))
    columns = ["verdict", "A100 tok/s", "speed-up", "A100 %", "A100 peak GB"]
    assert header[-5:] == columns
    assert [row[-4:] for row in rows] == [
        ["-", "-", "-", "-"],
        ["107.38", "0.93x", "0.5", "1.00"],
        ["107.38", "-", "0.5", "1.00"],
    ]


def test_figures_end_and_words_begin_where_their_column_does() -> None:
    report = compared(measured(tok_s=60.0), measured(OTHER, tok_s=101.0))
    report = replace(report, reference={CPU_ROW.id: MEASUREMENT})
    header, _, *rows = as_text(report).splitlines()[1:5]
    for name in ("tok/s", "first token ms", "A100 tok/s", "A100 peak GB"):
        end = header.index(name) + len(name)
        assert all(row[end - 1] != " " and row[end : end + 1] in " " for row in rows)
    begin = header.index("verdict")
    assert [row[begin:].split()[0] for row in rows] == ["SLOWER", "SAME"]


def test_what_autoquant_chose_is_a_table_below() -> None:
    choices = (chosen("int8wo", columns=96), chosen("int4wo-64-hqq", reused=True))
    report = report_of(measured(autoquant=choices), measured(OTHER))
    text = as_text(report)
    message = text.partition(f"autoquant chose for {CPU_ROW.id}:\n")[2].splitlines()
    header, _, *lines = [re.sub(r" {2,}", " | ", line.strip()) for line in message[:4]]
    assert header == (
        "N | K | tokens x products | none | int8wo | int4wo-64-hqq | chosen | times"
    )
    products = "6 x 30, 1 x 450"
    assert lines == [
        f"128 | 96 | {products} | 4.00 ms | 2.50 ms | - | int8wo | taken now",
        f"128 | 64 | {products} | 4.00 ms | 2.50 ms | 1.25 ms | int4wo-64-hqq | reused",
    ]
    assert text.count("autoquant chose") == 1
    below = as_markdown(report).partition(f"autoquant chose for `{CPU_ROW.id}`:")[2]
    assert cells(below)[2][-2:] == ["int8wo", "taken now"]


def test_a_report_is_drawn_and_written_in_every_format_and_read_back(
    tmp_path: Path, cli: CommandLine
) -> None:
    def drawn(*options: str) -> str:
        return cli("report", str(tmp_path / "run.json"), *options)[0]

    run = compared(
        measured(tok_s=60.0, autoquant=(chosen("int8wo"),)),
        REFUSED,
        reference={CPU_ROW.id: MEASUREMENT},
        selected=3,
        stale=("gone",),
    )
    formats = (
        ("json", ".json", to_json(run)),
        ("text", ".txt", as_text(run)),
        ("markdown", ".md", as_markdown(run)),
        ("csv", ".csv", report.draw(run, "csv")),
        ("jsonl", ".jsonl", report.draw(run, "jsonl")),
    )
    for name, suffix, text in formats:
        path = tmp_path / f"run{suffix}"
        report.write(run, path)
        assert path.read_text("utf-8") == report.draw(run, name) == text
        assert name == "json" or drawn("--format", name) == text
    assert drawn() == as_text(run)
    assert from_json(Report, drawn("--format", "json"), source="stdout") == run


def test_a_path_that_no_report_can_be_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "folder.md"
    folder.mkdir()
    suffixes = f"ends in {', '.join(report.suffixes())}"
    for path, words in {
        tmp_path / "run.poem": suffixes,
        tmp_path / "run": suffixes,
        tmp_path / "no folder" / "run.md": "its folder does not exist",
        folder: "it is a folder",
    }.items():
        with pytest.raises(SpecError, match=r"^report: ") as caught:
            report.check_path(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
    assert [*tmp_path.iterdir()] == [folder]
    with pytest.raises(SpecError, match=r"format: 'poem' .* allowed: csv, "):
        report.draw(report_of(), "poem")


def test_the_command_refuses_what_is_no_report(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = tmp_path / "run.json"
    words = ("report", str(path))
    assert "cannot be read: No such file" in cli.refusal(*words)
    path.write_text(to_json(baseline_of(measured())), encoding="utf-8")
    assert cli.refusal(*words).startswith(f"{path}: it is a baseline: `llama-perf ")
    text = to_json(report_of(measured()))
    path.write_text(text.replace('"float32"', '"bf16"'), encoding="utf-8")
    message = cli.refusal(*words)
    assert message.startswith(f"{path}: results.0.row: dtype: 'bf16' is not allowed")
    message = cli.refusal(*words, "--format", "poem")
    allowed = ", ".join(report.names())
    assert message == f"format: 'poem' is not allowed; allowed: {allowed}"


LITERAL, ENGINE = selection.load_set("published"), selection.load_set("reference")
A100 = baselines.reference(baselines.baselines_folder())


def with_a100(*results: RowResult) -> Report:
    keys = {result.id: result.row.reference_key for result in results}
    figures = {row_id: A100[key] for row_id, key in keys.items() if key in A100}
    return report_of(*results, reference=figures)


def lines_of(report: Report) -> list[list[str]]:
    return cells(published_table(report, style="github") or "")


def test_a_row_of_both_sets_is_compared_with_the_a100() -> None:
    report = with_a100(
        measured(ENGINE[0], tok_s=322.14),
        measured(CPU_ROW),
        measured(LITERAL[0], tok_s=214.76),
        unmeasured(Status.NOT_RUN, "pytorch/ao#2376", LITERAL[1]),
        measured(ENGINE[1]),
    )
    header, _, line, broken = lines_of(report)
    assert ", ".join(header) == (
        "row, A100 tok/s, published tok/s, speed-up, reference tok/s, speed-up,"
        " reference / published"
    )
    name = "llama-2-7b-chat-hf.none.bf16.compile"
    assert line == [name, "107.38", "214.76", "2.00x", "322.14", "3.00x", "1.50x"]
    # A row that was not measured says how it ended.
    assert broken[1:] == ["9.61", "NOT_RUN", "-", "100.00", "10.41x", "-"]
    for drawn in (as_text(report), as_markdown(report)):
        assert "the published rows: on the A100, with its settings here, on" in drawn
        assert "3.00x" in drawn


def test_every_row_of_both_sets_finds_its_counterpart() -> None:
    for listed in (LITERAL, ENGINE):
        one_set = with_a100(*map(measured, listed))
        assert published_table(one_set) is None
        assert "the published rows" not in as_markdown(one_set)
    report = with_a100(*map(measured, (*LITERAL, *ENGINE)))
    rows = [(literal.row, engine.row) for literal, engine in published_rows(report)]
    assert rows == list(zip(LITERAL, ENGINE, strict=True))
    lines = lines_of(report)[2:]
    assert len({line[0] for line in lines}) == 43
    assert "-" not in [line[1] for line in lines]
    # The default set of a GPU has some of them.
    report = with_a100(*map(measured, selection.load_set("cuda")))
    schemes = [engine.row.quantization for _, engine in published_rows(report)]
    assert schemes == [None, "int8wo", "int4wo-64"]
