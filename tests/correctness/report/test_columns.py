"""Which columns a table has, and that the narrow one fits 80 characters."""

import re
from pathlib import Path
from typing import Any

import pytest

from llama_perf import report as reports
from llama_perf.metrics import PEAK_MEMORY, TOK_S
from llama_perf.report.columns import ALL, NAMES, NARROW, Layout, in_files, on_screen
from llama_perf.report.table import results_table
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.run import Comparison, MetricChange, Report, Verdict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    CPU_ROW,
    MEASUREMENT,
    OTHER,
    chosen,
    measured,
    report_of,
)
from tests.correctness.support.terminals import pseudo_terminal

# As many characters as a figure may well have.
LARGE = {"tok_s": 12345.67, "decode_tok_s": 12345.67, "peak_memory_bytes": 130 * 10**9}


def judged(rows: list[RowSpec], verdict: Verdict, **changes: Any) -> Report:
    """Rows with large figures that all changed, each with this verdict."""
    moved = tuple(
        MetricChange(
            metric=metric.title, baseline=1, current=0, change=-1, limit=0.1, worse=True
        )
        for metric in (TOK_S, PEAK_MEMORY)
        if verdict is not Verdict.NOT_COMPARED
    )
    results = [measured(row, **LARGE, **changes) for row in rows]
    comparisons = (
        Comparison(
            id=row.id,
            verdict=verdict,
            reason="",
            failed=False,
            changes=moved,
            minimum_detectable=0.05 if moved else None,
        )
        for row in rows
    )
    then = dict.fromkeys((row.id for row in rows), MEASUREMENT)
    return report_of(*results, comparisons=tuple(comparisons), reference=then)


def headers(table: str) -> list[str]:
    """The headers of a table in text, or in markdown."""
    line = next(
        line for line in table.splitlines() if re.match(r"(\| )?row( |$)", line)
    )
    return re.split(r" *\| *| {2,}", line.strip(" |"))


@pytest.mark.parametrize("name", selection.set_names())
@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_narrow_table_of_every_set_fits_80_characters_and_names_each_row(
    name: str, verdict: Verdict
) -> None:
    rows = selection.load_set(name)
    report = judged(rows, verdict)
    common, table = results_table(report, "simple", on_screen("narrow", None))
    _, ruler, *lines = table.splitlines()
    assert max(map(len, table.splitlines())) <= NARROW
    assert {"tok/s", "verdict"} < set(headers(table))
    # A line without figures goes on with the name of the line before.
    width = ruler.index(" ")
    names: list[str] = []
    for line in lines:
        part = line[:width].rstrip()
        if line[width:].strip():
            names.append(part)
        else:
            names[-1] += part
    assert len(set(names)) == len(rows)
    for row, shown in zip(rows, names, strict=True):
        assert all(f".{token}." in f".{row.id}." for token in shown.split("."))
        assert len(shown) + len(common) >= len(row.id) - 1


def test_a_wide_terminal_gets_what_fits_and_a_file_everything() -> None:
    rows = selection.load_set("cpu")
    report = judged(rows, Verdict.SAME, autoquant=(chosen("int8wo"),))
    every = as_text(report)
    assert "autoquant chose for" in every
    assert {"A100 tok/s", "found 9 in 10", "check dB"} <= set(headers(every))
    counts = []
    for width in (80, 100, 120, 140):
        text = as_text(report, on_screen(None, width))
        table = text.partition("autoquant")[0].partition("\nnot in ")[0]
        assert max(map(len, table.splitlines())) <= width
        assert f"\nnot in {width} characters a line: columns" in text
        assert "--columns all shows all\n" in text
        counts.append(len(headers(text)))
    assert counts == sorted(set(counts))
    assert as_text(report, on_screen(None, 1000)) == every
    assert as_text(report, on_screen("all", 80)) == every
    assert as_text(report, on_screen(None, None)) == every


def test_tables_below_that_are_too_wide_are_left_out_and_named() -> None:
    choices = (chosen("int8wo"), chosen("int4wo-64-hqq"))
    report = report_of(measured(autoquant=choices))
    text = as_text(report, on_screen("narrow", None))
    assert "autoquant chose" not in text
    left_out = f"columns, autoquant's choices for {CPU_ROW.id}"
    assert f"\nnot in 80 characters a line: {left_out}; --columns all" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_column_that_is_named_is_there_with_a_figure_or_without(name: str) -> None:
    for report in (judged([CPU_ROW], Verdict.SAME), report_of(measured())):
        for draw in (as_text, as_markdown):
            assert len(headers(draw(report, in_files(name)))) == (
                1 if name == "row" else 2
            )


def test_named_columns_have_the_order_they_are_named_in() -> None:
    report = judged([CPU_ROW, OTHER], Verdict.SAME)
    layout = in_files("verdict,row,peak-change,tok/s,tok/s")
    assert headers(as_text(report, layout)) == ["row", "verdict", "change", "tok/s"]
    assert headers(as_markdown(report, layout)) == ["row", "verdict", "change", "tok/s"]
    # A name of columns is no reason to go beyond the terminal.
    rows = selection.load_set("cpu")
    long = judged(rows, Verdict.SAME)
    table = results_table(long, "simple", on_screen("tok/s,verdict", 50))[1]
    assert max(map(len, table.splitlines())) <= 50


def test_all_narrow_and_no_names_name_no_columns_of_a_file() -> None:
    assert in_files(None) == in_files("all") == in_files("narrow") == ALL
    assert on_screen("narrow", 60) == Layout(width=60)
    assert on_screen("narrow", 200) == on_screen("narrow", None) == Layout(width=80)


def test_an_unknown_column_is_named_with_what_is_allowed(
    tmp_path: Path, cli: CommandLine
) -> None:
    words = (
        "columns: 'speed' is not allowed; allowed: all, narrow, or names with a comma"
        f" between: {', '.join(NAMES)}"
    )
    assert refusal(in_files, "tok/s,speed") == words
    assert "columns: '' is not allowed" in refusal(in_files, "tok/s,")
    # Before anything is read or run.
    absent = str(tmp_path / "absent")
    for command in (
        ("run", "--set", "cpu"),
        ("compare", "--base", "absent"),
        ("report", absent),
        ("baseline", "show", "--baselines", str(tmp_path)),
        ("baseline", "record", "--from", absent),
    ):
        assert cli.refusal(*command, "--columns", "speed") == words


def test_commands_print_the_columns_asked_for(tmp_path: Path, cli: CommandLine) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(report_of(measured())), encoding="utf-8")
    asked = ("--columns", "peak,spread")
    for shape in ("text", "markdown"):
        out, _ = cli("report", str(path), "--format", shape, *asked)
        assert headers(out) == ["row", "peak GB", "spread %"]
    for shape in ("csv", "json"):
        message = cli.refusal("report", str(path), "--format", shape, *asked)
        assert message.startswith("columns: 'peak,spread' is not allowed; ")
        assert f"{shape} always has all of them" in message
    folder = tmp_path / "baselines"
    words = ("--baselines", str(folder), *asked)
    out, _ = cli("baseline", "record", "--from", str(path), *words)
    assert headers(out) == ["row", "peak GB", "spread %"]
    out, _ = cli("baseline", "show", *words)
    assert headers(out) == ["row", "peak GB", "spread %"]


def test_on_a_terminal_of_80_characters_a_command_prints_the_narrow_table(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judged(selection.load_set("cpu"), Verdict.SAME)
    path = tmp_path / "run.json"
    path.write_text(to_json(report), encoding="utf-8")
    in_a_pipe, _ = cli("report", str(path))
    assert in_a_pipe == reports.draw(report, "text")
    monkeypatch.setenv("COLUMNS", "80")
    with pseudo_terminal() as (stream, arrived):
        monkeypatch.setattr("sys.stdout", stream)
        cli("report", str(path))
        stream.flush()
    shown = arrived[0].replace("\r\n", "\n")
    assert shown == reports.draw(report, "text", on_screen(None, 80))
    table = shown.partition("\nnot in ")[0].splitlines()[1:]
    assert 70 < max(map(len, table)) <= 80
