"""What reports show of a measured closeness: columns, notes, details, the chart."""

import json
from dataclasses import replace
from typing import Any

import pytest

from llama_perf import report
from llama_perf.report.closeness_notes import in_words
from llama_perf.report.comment import body
from llama_perf.report.html.closeness_charts import closeness
from llama_perf.report.html.rows import _details, rows_of
from llama_perf.results.run import Report
from tests.correctness.support.record_samples import (
    CLOSENESS,
    CPU_ROW,
    INT8_CPU,
    baseline_of,
    close,
    compare,
    measured,
    report_of,
)

FP6 = replace(INT8_CPU, quantization="fp6")
FAR: dict[str, Any] = {"db": 9.0, "kl_nats": 0.6}
NEAR = {"db": 14.0}


def judged(*results: Any, then: Any, **changes: Any) -> Report:
    baseline = baseline_of(*then)
    comparisons = tuple(compare(result, baseline) for result in results)
    return report_of(*results, comparisons=comparisons, **changes)


@pytest.fixture
def run() -> Report:
    """A row that got faster and worse, one that got closer, an unquantized one."""
    worse = measured(
        INT8_CPU, tok_s=200.0, closeness=replace(CLOSENESS, **FAR), closeness_db=8.0
    )
    full = measured(closeness_db=118.2)
    then = (close(), close(FP6), measured())
    again = ("llama-perf", "run")
    return judged(worse, close(FP6, **NEAR), full, then=then, again=again)


def test_one_column_has_the_closeness_over_a_text_and_else_the_quick_one(
    run: Report,
) -> None:
    header, _, worse, closer, full = report.draw(run, "text").splitlines()[1:6]
    place = header.index("closeness dB") + len("closeness dB")
    for line, db, change in (
        (worse, "9.0", "-3.0"),
        (closer, "14.0", "+2.0"),
        (full, "118.2", "-"),
    ):
        assert line[:place].split()[-1] == db
        assert line[place:].split()[0] == change
    assert header[place:].split() == ["change", "verdict"]


def test_a_run_without_a_measured_closeness_has_the_usual_table() -> None:
    rows = (measured(INT8_CPU, closeness_db=27.8), measured(closeness_db=118.2))
    for style in ("text", "markdown"):
        assert "closeness" not in report.draw(judged(*rows, then=rows), style)


def test_text_and_markdown_say_why_and_what_is_closer(run: Report) -> None:
    for style, again in (("text", "  again: "), ("markdown", "  - again: ")):
        text = report.draw(run, style)
        assert "closeness to the twin (dB) 12.00 -> 9.00 (-3.00 dB, limit 1 dB)" in text
        assert f"{again}llama-perf run --row {INT8_CPU.id}" in text
        assert (
            f"closer: {FP6.id}: closeness to the twin (dB) 12.00 -> 14.00 (+2.00 dB);"
            " record its baseline anew to keep that"
        ) in text
        assert "1 WORSE" in text


def test_what_is_not_judged_is_one_note_for_all_rows() -> None:
    run = judged(close(), close(FP6), then=(measured(INT8_CPU), measured(FP6)))
    note = "closeness of 2 rows is not judged: the baseline has none"
    text = report.draw(run, "text")
    assert text.count("is not judged") == 1
    assert note in text


def test_flat_lines_have_every_figure(run: Report) -> None:
    line = json.loads(report.draw(run, "jsonl").splitlines()[0])
    assert line["verdict"] == "WORSE"
    figures = {
        "text_closeness_db": 9.0,
        "closeness_db": 8.0,
        "kl_nats": 0.6,
        "top1_share": 0.66,
        "perplexity": 20.0,
        "same_greedy_tokens": 8,
    }
    assert line.items() >= figures.items()
    assert line["perplexity_ratio"] == pytest.approx(20 / 15)


def test_details_of_a_row_have_its_changes_and_all_of_its_closeness(
    run: Report,
) -> None:
    rows, _ = rows_of(run)
    worse, _, full = (_details(run, row) for row in rows)
    assert worse["kind"] == "bad"
    assert worse["closeness"] == (
        "9.0 dB over built-in:0123456789ab (470 tokens); divergence 0.6000 nats; 66.0%"
        " of the twin's top-1 tokens; perplexity 20.00, the twin's 15.00; greedy token"
        " 9 of 32 is the first other one"
    )
    change = ["closeness to the twin (dB)", "12.00", "9.00", "-3.00 dB", "1 dB"]
    changes: Any = worse["changes"]
    assert [*change, "worse"] in changes
    assert "closeness" not in full
    all_same = replace(CLOSENESS, same_greedy_tokens=32)
    assert in_words(all_same).endswith("all 32 greedy tokens are the twin's")


def test_a_comment_names_the_row_that_got_worse_and_the_one_that_is_closer(
    run: Report,
) -> None:
    text = body(run, name="a")
    assert (
        f"- **WORSE** `{INT8_CPU.id}`: closeness to the twin (dB) -3.00 dB (12.00 to"
        " 9.00, limit 1 dB); divergence from the twin (nats) +100.0%"
    ) in text
    assert "#### Closeness" in text
    assert "closeness dB | change | verdict |" in text
    plain = judged(measured(), then=[measured()])
    assert "loseness" not in body(plain, name="a")


def test_the_chart_has_the_closeness_over_the_text_where_there_is_one(
    run: Report,
) -> None:
    (chart,) = closeness(run)
    points = {one["row"]: one["db"] for one in chart.spec["datasets"]["rows"]}
    assert points == {INT8_CPU.id: 9.0, FP6.id: 14.0, CPU_ROW.id: 118.2}
    assert "not over the text: 1 row" in chart.text
    quick = report_of(measured(INT8_CPU, closeness_db=27.8))
    assert "not over the text" not in closeness(quick)[0].text
