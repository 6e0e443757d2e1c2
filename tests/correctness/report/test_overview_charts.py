"""The charts of all rows: their values, their words, and what is left out."""

import json
from dataclasses import replace
from typing import Any

import pytest

from llama_perf.report.html.change_chart import changes, speed_change
from llama_perf.report.html.closeness_charts import NO_CLOSENESS, closeness
from llama_perf.report.html.overview_charts import overview_charts
from llama_perf.report.html.page import Chart
from llama_perf.report.html.roofline_chart import roofline
from llama_perf.results.run import (
    Comparison,
    MetricChange,
    Report,
    RowResult,
    Status,
    Verdict,
)
from tests.correctness.support import chart_specs
from tests.correctness.support.record_samples import (
    CPU_ROW,
    GB,
    INT8_CPU,
    OTHER,
    measured,
    report_of,
    unmeasured,
)


def drawn(chart: Chart | None) -> Chart:
    assert chart is not None
    chart_specs.check(chart)
    return chart


def points(chart: Chart) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = chart.spec["datasets"]["rows"]
    return values


def changed(
    result: RowResult,
    verdict: Verdict,
    *moved: MetricChange,
    failed: bool = False,
    **facts: Any,
) -> Comparison:
    return Comparison(
        id=result.id, verdict=verdict, reason="", failed=failed, changes=moved, **facts
    )


def tok_s(
    share: float, limit: float | None = None, metric: str = "tok/s"
) -> MetricChange:
    return MetricChange(
        metric=metric,
        baseline=100.0,
        current=100 * (1 + share),
        change=share,
        limit=limit,
        worse=False,
    )


def of_bandwidth(report: Report, gb_s: float | None) -> Report:
    return replace(report, device_bandwidth_gb_s=gb_s)


def test_a_point_of_the_roofline_is_the_bytes_and_the_speed_of_one_sequence() -> None:
    row = replace(INT8_CPU, batch_size=4)
    result = measured(
        row,
        tok_s=80.0,
        model_size_bytes=GB // 2,
        bandwidth_gb_s=10.0,
        device_bandwidth_gb_s=40.0,
    )
    chart = drawn(roofline(of_bandwidth(report_of(result), 50.0)))
    assert points(chart) == [
        {
            "row": row.id,
            "scheme": "int8wo",
            "family": "int8wo",
            "gb": 0.5,
            "tok_s": 20.0,
            "gb_s": 10.0,
            # Of the bandwidth that was measured with the row, not of the run's.
            "share": "25.0%",
        }
    ]
    lines = chart.spec["datasets"]["lines"]
    for words, gb_s in (("50 GB/s", 50), ("50%", 25), ("25%", 12.5)):
        ends = [one for one in lines if one["label"] == words]
        assert [one["is_end"] for one in ends] == [False, True]
        for end in ends:
            assert end["gb"] * end["tok_s"] == pytest.approx(gb_s, rel=1e-3)
    assert f"{row.id} reaches 25.0%" in chart.text
    assert "20 tok/s" not in chart.text


def test_rows_of_other_bandwidths_have_two_lines() -> None:
    near, far = (measured(row, device_bandwidth_gb_s=20.0) for row in (CPU_ROW, OTHER))
    chart = drawn(roofline(of_bandwidth(report_of(near, far), None)))
    assert "the bandwidth of the device, 20 GB/s" in chart.text
    far = measured(OTHER, device_bandwidth_gb_s=15.0)
    chart = drawn(roofline(of_bandwidth(report_of(near, far), 20.0)))
    assert "the largest and the smallest bandwidth" in chart.text
    lines = chart.spec["datasets"]["lines"]
    assert {one["label"] for one in lines} == {"20 GB/s", "15 GB/s", "50%", "25%"}


def test_a_roofline_without_a_bandwidth_says_so() -> None:
    result = measured(device_bandwidth_gb_s=None)
    chart = drawn(roofline(report_of(result)))
    assert len(chart.spec["layer"]) == 1
    assert points(chart)[0]["share"] == "not known"
    assert "not measured" in chart.text
    above = measured(bandwidth_gb_s=30.0, device_bandwidth_gb_s=20.0)
    text = drawn(roofline(report_of(above))).text
    assert "1 row above it" in text
    assert roofline(report_of(measured(model_size_bytes=0))) is None


def test_each_model_has_the_front_of_its_own_rows() -> None:
    close = measured(INT8_CPU, tok_s=150.0, closeness_db=30.0)
    fast = measured(
        replace(INT8_CPU, quantization="fp6"), tok_s=200.0, closeness_db=15.04
    )
    beaten = measured(
        replace(INT8_CPU, quantization="uintx-4-64"), tok_s=140.0, closeness_db=10.0
    )
    unknown = measured(replace(INT8_CPU, quantization="int8dq"))
    full = measured(CPU_ROW, tok_s=100.0)
    other = measured(
        replace(INT8_CPU, model="other", batch_size=2), tok_s=50.0, closeness_db=9.0
    )
    rows = (
        close,
        fast,
        beaten,
        unknown,
        full,
        other,
        measured(replace(OTHER, model="x")),
    )
    first, second = map(drawn, closeness(report_of(*rows)))
    assert {one["row"]: one["front"] for one in points(first)} == {
        close.id: True,
        fast.id: True,
        beaten.id: False,
    }
    assert (
        "3 rows these are on it: fp6.fp32.cpu.eager (15.0 dB, 200.0 tok/s),"
        " int8wo.fp32.cpu.eager (30.0 dB, 150.0 tok/s)."
    ) in first.text
    assert "without a closeness, none.fp32.cpu.eager, 100.0 tok/s" in first.text
    assert "closeness is not known: 2." in first.text
    # The speed of one of its two sequences.
    assert [one["tok_s"] for one in points(second)] == [25.0]
    assert "none is both as close and as fast as int8wo.fp32.cpu" in second.text
    assert "unquantized row" not in second.text
    assert "not known" not in second.text
    assert first.name != second.name


def test_rows_in_float32_stand_at_the_end_of_the_axis() -> None:
    exact = measured(CPU_ROW, closeness_db=110.0)
    near = measured(INT8_CPU, tok_s=150.0, closeness_db=30.0)
    (chart,) = map(drawn, closeness(report_of(exact, near)))
    assert points(chart)[0]["db"] == 110.0
    assert points(chart)[0]["front"]
    for layer in chart.spec["layer"]:
        scale = layer["encoding"]["x"]["scale"]
        assert scale["clamp"]
        assert scale["domain"] == [29.0, 32.0]
    assert "Drawn at the right end: 1 row of more than 60 dB." in chart.text
    labels = chart.spec["datasets"]["beyond"]
    assert [label["label"] for label in labels] == ["more than 60 dB"]
    # It is a point itself.
    assert "Dotted" not in chart.text


def test_without_closeness_a_sentence_says_why_there_is_no_chart() -> None:
    charts, missing = overview_charts(report_of(measured()))
    assert [chart.name for chart in charts] == ["roofline"]
    assert NO_CLOSENESS in missing
    assert any("no chart of changes" in sentence for sentence in missing)
    empty = report_of(unmeasured(Status.NOT_RUN, "why"))
    assert overview_charts(empty) == ([], ["There is no chart: no row was measured."])
    assert overview_charts(report_of())[0] == []


def test_changes_are_sorted_with_their_limits_and_intervals() -> None:
    slower, faster, ratio = map(measured, (CPU_ROW, OTHER, INT8_CPU))
    judged = (
        changed(faster, Verdict.FASTER, tok_s(0.05, 0.02)),
        changed(
            slower,
            Verdict.SLOWER,
            tok_s(-0.08, 0.02),
            failed=True,
            change_interval=(-0.09, -0.07),
        ),
        changed(ratio, Verdict.SAME, tok_s(-0.5), tok_s(0.001, 0.03, "a ratio")),
    )
    report = report_of(slower, faster, ratio, comparisons=judged)
    chart = drawn(changes(report))
    assert points(chart) == [
        {
            "row": ratio.id,
            "verdict": "SAME",
            "metric": "a ratio",
            "change": 0.1,
            "limit": -3.0,
        },
        {
            "row": faster.id,
            "verdict": "FASTER",
            "metric": "tok/s",
            "change": 5.0,
            "limit": -2.0,
        },
        # What failed is drawn last.
        {
            "row": slower.id,
            "verdict": "SLOWER",
            "metric": "tok/s",
            "change": -8.0,
            "low": -9.0,
            "high": -7.0,
            "limit": -2.0,
        },
    ]
    assert f"3 rows, from -8.0% ({slower.id}) to +5.0% ({faster.id})" in chart.text
    assert f"Failed: {slower.id} SLOWER -8.0%." in chart.text
    assert "Of 1 row the change is that of a ratio." in chart.text
    quiet = report_of(faster, comparisons=(judged[0],))
    assert "None failed." in drawn(changes(quiet)).text


def test_the_change_of_speed_is_the_one_that_was_judged() -> None:
    result = measured()
    peak = tok_s(0.5, 0.01, "peak memory")
    known = (tok_s(-0.02), tok_s(-0.2, 0.1, "one"), tok_s(-0.3, 0.1, "two"), peak)
    assert speed_change(changed(result, Verdict.SLOWER, *known)) == known[2]
    assert speed_change(changed(result, Verdict.INCOMPARABLE, *known[:1])) == known[0]
    assert speed_change(changed(result, Verdict.LARGER, peak)) is None
    assert speed_change(changed(result, Verdict.NO_BASELINE)) is None


def test_all_charts_of_many_rows_are_small_and_filter_by_row() -> None:
    rows = [replace(INT8_CPU, prompt_length=number) for number in range(1, 101)]
    results = [
        measured(row, tok_s=100 / 7 + number, closeness_db=number / 7)
        for number, row in enumerate(rows)
    ]
    judged = [changed(one, Verdict.SAME, tok_s(1 / 7, 1 / 3)) for one in results]
    full = measured(CPU_ROW)
    report = report_of(*results, full, comparisons=tuple(judged))
    ids = {result.id for result in report.results}
    charts, missing = overview_charts(report)
    assert [chart.name for chart in charts] == ["roofline", "closeness-1", "changes"]
    assert missing == []
    for chart in map(drawn, charts):
        assert {one["row"] for one in points(chart)} <= ids
        (visible,) = chart.spec["params"]
        assert visible == {"name": "visible", "value": None}
        assert len(json.dumps(chart.spec)) < 200 * len(ids)
        # Else it would have none, and say so, where no row is visible.
        for axis in chart_specs.axes(chart.spec):
            assert "domain" in axis["scale"], axis
        for layer in chart.spec["layer"]:
            source = layer.get("data", chart.spec.get("data"))["name"]
            filters = str(layer.get("transform"))
            assert ("visible" in filters) == (source in {"rows", "unquantized"})


def test_hidden_rows_are_not_drawn() -> None:
    results = [measured(CPU_ROW, closeness_db=5.0), measured(OTHER, closeness_db=7.0)]
    (chart,) = closeness(report_of(*results))
    chart.spec["params"][0]["value"] = [OTHER.id]
    svg = chart_specs.drawn(chart)
    assert OTHER.id in svg
    assert f"{CPU_ROW.id};" not in svg
