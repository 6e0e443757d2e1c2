"""Percentiles over tokens: which are shown, what they are, and where they are kept."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf import report as reports
from llama_perf.errors import RecordError
from llama_perf.report.columns import in_files
from llama_perf.report.text import as_markdown
from llama_perf.results import baselines
from llama_perf.results.measurement import Measurement, MemoryParts
from llama_perf.results.run import Report, read_report
from llama_perf.results.token_times import percentile_ms
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    ENVIRONMENT,
    MEASUREMENT,
    edited,
    measured,
    report_of,
    stored_in,
)

COLUMNS = "token-p50,token-p90,token-p99,weights,cache,closeness"
# 5 samples of 200 tokens: 1, 2, ... 199 ms.
TIMES = (tuple(ms * 10**6 for ms in range(1, 200)),) * 5
PARTS = MemoryParts(weights_bytes=538_060_160, cache_bytes=24_330_600)


def full() -> Report:
    row = measured(token_ns=TIMES, memory=PARTS, closeness_db=27.84)
    return report_of(row)


def figures(run: Report) -> list[list[str]]:
    """The header and the cells of COLUMNS in a table with one row."""
    text = as_markdown(run, in_files(COLUMNS))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, row = (line.split("|")[2:-1] for line in lines)
    return [[cell.strip() for cell in line] for line in (header, row)]


@pytest.mark.parametrize(
    ("percent", "least"), [(50, 10), (90, 50), (99, 500), (10, 50), (1, 500)], ids=str
)
def test_a_percentile_needs_five_tokens_beyond_it(percent: int, least: int) -> None:
    assert percentile_ms([[7_000_000] * least], percent) == 7
    assert percentile_ms([[7_000_000] * (least - 1)], percent) is None
    # Of samples together, not of each.
    halves = [[7_000_000] * (least // 2)] * 2
    assert percentile_ms(halves, percent) == 7
    assert percentile_ms(None, percent) is percentile_ms([(), ()], percent) is None


def test_percentiles_are_those_of_all_tokens() -> None:
    tokens = [ms * 10**6 for ms in range(1001)]
    samples = [tokens[500:], tokens[:500]]
    assert [percentile_ms(samples, of) for of in (50, 90, 99)] == [500, 900, 990]
    # Half way between two tokens.
    assert percentile_ms([[ms * 10**6 for ms in range(10)]], 50) == 4.5


def test_a_table_has_them_where_they_are_named_and_csv_always() -> None:
    run = full()
    assert "token p50" not in as_markdown(run)
    header, row = figures(run)
    # Of 995 tokens, five of each time, the 90th percentile lies behind token 894.6.
    assert row == ["100.00", "179.60", "197.06", "0.538", "0.024", "27.8"]
    assert header == [
        *("token p50 ms", "token p90 ms", "token p99 ms"),
        *("weights GB", "cache GB", "closeness dB"),
    ]
    (line,) = csv.DictReader(reports.draw(run, "csv").splitlines())
    for name, value in {
        "token_p50_ms": "100.0",
        "token_p90_ms": "179.6",
        "token_p99_ms": "197.06",
        "weights_bytes": "538060160",
        "cache_bytes": "24330600",
        "closeness_db": "27.84",
    }.items():
        assert line[name] == value
    (line,) = csv.DictReader(reports.draw(report_of(measured()), "csv").splitlines())
    assert line["token_p50_ms"] == line["cache_bytes"] == ""
    few = report_of(measured(token_ns=((10**6,) * 15,) * 5))
    assert figures(few)[1] == ["1.00", "1.00", "-", "-", "-", "-"]


def test_results_keep_a_line_for_each_sample_and_a_baseline_none(
    tmp_path: Path,
) -> None:
    run = full()
    text = to_json(run)
    assert len([line for line in text.splitlines() if "1000000, 2000000" in line]) == 5
    assert from_json(Report, text, source="run") == run
    baseline = baselines.of_report(run)
    (kept,) = baseline.rows
    now = run.results[0].measurement
    assert now is not None
    assert kept.measurement == replace(now, token_ns=None)
    _, recorded = baselines.record_rows(
        tmp_path, environment=ENVIRONMENT, results=run.results * 3
    )
    assert recorded.rows[0].measurement.token_ns is None
    assert '"token_ns"' not in to_json(recorded)
    # One that has them is read all the same.
    row = replace(kept, measurement=now)
    path = stored_in(tmp_path / "with", replace(baseline, rows=(row,)))
    assert baselines.read(path).rows[0].measurement.token_ns == TIMES


def test_an_older_process_sends_none_of_it() -> None:
    text = to_json(MEASUREMENT)
    assert not {"token_ns", "memory", "closeness_db"} & set(text.split('"'))
    assert from_json(Measurement, text, source="a worker").token_p50_ms is None


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([[5, -1]], "token_ns: -1 is not allowed; allowed: 0 or more"),
        ([[1.5]], "token_ns.0.0: 1.5 is not allowed; allowed: a whole number"),
        ([[5], 5], "token_ns.1: 5 is not allowed; allowed: a list"),
    ],
)
def test_what_was_edited_badly_is_one_line(
    times: object, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(full()), encoding="utf-8")
    edited(path, {"results.0.measurement.token_ns": times})
    assert wanted in refusal(read_report, path, error=RecordError)
