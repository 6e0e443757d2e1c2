"""The charts of one row: their values by hand, their words, and rows that lack some."""

import json
from dataclasses import replace
from typing import Any

import pytest

from llama_perf.report.html.row_charts import row_charts
from llama_perf.report.html.row_data import MEMORY, SAMPLES, STEP, TOKENS, row_data
from llama_perf.report.html.row_texts import row_texts
from llama_perf.results.measurement import (
    Measurement,
    MemoryParts,
    OperatorTime,
    StepWork,
)
from llama_perf.results.processes import ProcessSamples
from llama_perf.results.run import Before, Comparison, RowResult, Status, Verdict
from tests.correctness.support import chart_specs
from tests.correctness.support.record_samples import (
    CPU_ROW,
    GB,
    figures_of,
    measured,
    unmeasured,
)

# Two sequences of 50 new tokens each.
ROW = replace(CPU_ROW, batch_size=2, max_new_tokens=50)


def process(*sample_s: float) -> ProcessSamples:
    times = tuple(round(one * 1e9) for one in sample_s)
    tok_s = 100 / sorted(sample_s)[len(sample_s) // 2]
    return ProcessSamples(tok_s=tok_s, peak_memory_bytes=GB, sample_ns=times)


def compared(
    then: Measurement | None, *stored: ProcessSamples, **facts: Any
) -> Comparison:
    before = None if then is None else Before(measurement=then, processes=stored)
    return Comparison(
        id=ROW.id, verdict=Verdict.SAME, reason="", failed=False, before=before, **facts
    )


def step(**times: float) -> StepWork:
    operators = (
        OperatorTime(name=name, calls=1.0, ms=ms) for name, ms in times.items()
    )
    return StepWork(calls=9.0, ms=10.0, operators=tuple(operators))


def test_samples_and_processes_stand_beside_those_of_the_baseline() -> None:
    result = measured(ROW, sample_ns=(10**9, 2 * 10**9), tok_s=200 / 3)
    stored = (process(0.5, 1.0, 2.0), process(4.0))
    comparison = compared(figures_of(ROW), *stored, processes=(process(1.25),))
    data = row_data(result, comparison)[SAMPLES]
    rates: dict[str, list[float]] = {}
    for one in data:
        rates.setdefault(one["group"], []).append(one["tok_s"])
    # The median of each group comes last.
    assert rates == {
        "now: samples": [100.0, 50.0, 75.0],
        "now: processes": [80.0, 80.0],
        "baseline: processes": [100.0, 25.0, 62.5],
        "baseline: samples": [200.0, 100.0, 50.0, 25.0, 75.0],
    }
    assert [one["group"] for one in data if one.get("median")] == list(rates)


def test_a_step_has_its_longest_operators_and_what_is_in_none() -> None:
    names = {f"op{number}": 1.0 for number in range(5)}
    now = step(product=3.0, **names, small=0.25)
    then = step(product=2.0, gone=4.0)
    # A step takes 2 / 160 s and 2 / 400 s.
    result = measured(ROW, step=now, decode_tok_s=160.0)
    before = figures_of(ROW, step=then, decode_tok_s=400.0)
    data = row_data(result, compared(before))[STEP]
    parts = [(one["when"], one["part"], one["value"]) for one in data if "part" in one]
    assert parts == [
        ("now", "2 product", 3.0),
        ("now", "3 op0", 1.0),
        ("now", "4 op1", 1.0),
        ("now", "5 op2", 1.0),
        ("now", "6 op3", 1.0),
        # 10 ms in all operators, of which 7 have a name here.
        ("now", "7 other operators", 3.0),
        ("now", "8 outside operators", 2.5),
        ("baseline", "1 gone", 4.0),
        ("baseline", "2 product", 2.0),
        # The profiler made them longer than the step is, so nothing is outside.
        ("baseline", "7 other operators", 4.0),
    ]
    whole = {one["when"]: one["measured"] for one in data if "measured" in one}
    assert whole == {"now": 12.5, "baseline": 5.0}


def test_a_kernel_of_a_long_name_is_shortened_and_keeps_it() -> None:
    name = f"void at::native::{'kernel' * 10}<float>"
    (part, _) = row_data(measured(ROW, step=step(**{name: 10.0})), None)[STEP][:2]
    assert part["part"].startswith("1 at::native::kernel")
    assert len(part["part"]) < 60
    assert part["name"] == name


def test_memory_is_weights_cache_workspace_and_the_rest() -> None:
    result = measured(
        ROW,
        peak_memory_bytes=10 * GB,
        peak_allocated_bytes=9 * GB,
        memory=MemoryParts(weights_bytes=5 * GB, cache_bytes=3 * GB),
    )
    # An older run says only what all tensors took.
    before = figures_of(ROW, peak_memory_bytes=7 * GB, peak_allocated_bytes=6 * GB)
    data = row_data(result, compared(before))[MEMORY]
    assert [(one["when"], one["part"], one["value"]) for one in data] == [
        ("now", "1 weights", 5.0),
        ("now", "2 cache", 3.0),
        ("now", "3 workspace", 1.0),
        ("now", "4 rest", 1.0),
        ("baseline", "0 tensors", 6.0),
        ("baseline", "4 rest", 1.0),
    ]


@pytest.mark.parametrize(
    ("figures", "parts"),
    [
        ({}, {"0 peak": 2.0}),
        ({"peak_allocated_bytes": 2 * GB}, {"0 tensors": 2.0}),
        # A resident set may grow by less than the tensors ask for.
        ({"peak_allocated_bytes": 3 * GB}, {"0 tensors": 3.0}),
        (
            {"memory": MemoryParts(weights_bytes=GB, cache_bytes=0)},
            {"1 weights": 1.0, "4 rest": 1.0},
        ),
    ],
)
def test_memory_of_which_less_is_known(
    figures: dict[str, Any], parts: dict[str, float]
) -> None:
    result = measured(ROW, peak_memory_bytes=2 * GB, **figures)
    data = row_data(result, None)[MEMORY]
    assert {one["part"]: one["value"] for one in data} == parts


def test_times_of_tokens_are_percentiles_with_tokens_beyond_them() -> None:
    # 1 to 101 ms: the n-th percentile is n + 1 ms.
    times = tuple(number * 10**6 for number in range(1, 102))
    halves = (times[::2], times[1::2])
    data = row_data(measured(ROW, token_ns=halves), None)[TOKENS]
    assert {one["percent"]: one["ms"] for one in data} == {
        percent: percent + 1.0 for percent in (5, 10, 25, 50, 75, 90, 95)
    }
    assert row_data(measured(ROW, token_ns=(times[:99],)), None)[TOKENS] == []
    many = row_data(measured(ROW, token_ns=(times,) * 5), None)[TOKENS]
    assert {1, 99} <= {one["percent"] for one in many}


def results() -> list[tuple[RowResult, Comparison | None]]:
    full = {
        "step": step(product=3.0),
        "peak_allocated_bytes": GB // 2,
        "memory": MemoryParts(weights_bytes=GB // 4, cache_bytes=GB // 8),
        "token_ns": (tuple(range(10**6, 10**6 + 600)),),
    }
    before = figures_of(ROW, **full)
    return [
        (measured(ROW, **full), compared(before, process(1.0), process(2.0))),
        # Without a baseline; of a run without steps; not measured.
        (measured(ROW, **full), None),
        (measured(ROW), compared(None)),
        (unmeasured(Status.NOT_RUN, "why", ROW), None),
    ]


def test_each_chart_draws_the_source_of_its_name_and_has_words() -> None:
    charts = row_charts()
    assert [chart.name for chart in charts] == [SAMPLES, STEP, MEMORY, TOKENS]
    for result, comparison in results():
        data = row_data(result, comparison)
        texts = row_texts(data)
        assert list(data) == list(texts) == [chart.name for chart in charts]
        json.dumps(data, allow_nan=False)
        for name, values in data.items():
            assert bool(values) == bool(texts[name]), name
    data = row_data(*results()[0])
    for chart in charts:
        chart_specs.check(chart)
        assert chart.spec["data"] == {"name": chart.name}
        assert "datasets" not in chart.spec
        assert len(json.dumps(chart.spec)) < 4000
        svg = chart_specs.drawn(chart, data[chart.name])
        for axis in chart_specs.axes(chart.spec):
            assert axis["title"] is None or f">{axis['title']}<" in svg


def test_words_have_the_numbers_before_and_after() -> None:
    result, comparison = results()[0]
    assert comparison is not None
    assert comparison.before is not None
    slower = replace(comparison.before.measurement, decode_tok_s=100.0)
    before = replace(comparison.before, measurement=slower)
    data = row_data(result, replace(comparison, before=before))
    texts = row_texts(data)
    assert "baseline: processes: 2, median 75 tok/s, from 50 to 100." in texts[SAMPLES]
    # 2 sequences at 110 and at 100 tok/s.
    assert texts[STEP].startswith("A step: 18.18 ms (baseline 20).")
    assert "product 3 (baseline 3)" in texts[STEP]
    assert texts[MEMORY].startswith("The peak: 1 GB (baseline 1).")
    assert "50 % took at most 1 ms" in texts[TOKENS]
