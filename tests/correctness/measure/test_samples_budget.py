"""A row's `num_samples` is a most: how many a budget leaves, and that it is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_perf.devices.device import device_of
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer
from llama_perf.measure import timing as measuring
from llama_perf.measure.memory import MemoryMeter
from llama_perf.measure.prepare import Prepared
from llama_perf.measure.timing import MeasureOptions, Sample, measure, more_samples
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    MEASUREMENT,
    measured,
)
from tests.correctness.support.weights_samples import TINY


def taken(seconds: float, *, most: int = 5, budget_s: float | None = 20.0) -> int:
    """How many samples of so many seconds a row takes."""
    sample = Sample(
        total_ns=round(seconds * 1e9), first_token_ns=1, tokens=torch.zeros(1)
    )
    samples: list[Sample] = []
    while more_samples(samples, limit=most, budget_s=budget_s):
        samples.append(sample)
    return len(samples)


@pytest.mark.parametrize(
    ("seconds", "most", "count"),
    [
        (0.1, 5, 5),
        (4.0, 5, 5),
        (4.5, 5, 4),
        (6.0, 5, 3),
        (60.0, 5, 3),
        (60.0, 2, 2),
        (60.0, 1, 1),
        (1.0, 30, 20),
    ],
)
def test_samples_stay_in_the_budget_but_are_three_where_as_many_are_asked_for(
    seconds: float, most: int, count: int
) -> None:
    assert taken(seconds, most=most) == count
    assert taken(seconds, most=most, budget_s=None) == most


def test_a_cpu_takes_all_that_a_row_asks_for() -> None:
    assert device_of("cpu").samples_budget_s is None
    assert device_of("cuda").samples_budget_s == 20.0


def prepared(row: RowSpec) -> Prepared:
    torch.manual_seed(0)
    model = Transformer(TINY)
    engine = Engine(model, EngineOptions(cache_size=row.positions))
    prompt = torch.zeros((1, row.prompt_length), dtype=torch.int64)
    return Prepared(row=row, engine=engine, prompt=prompt, weights="", build_s=0.0)


@pytest.mark.parametrize(("budget_s", "count"), [(None, 5), (1e-9, 3), (1e6, 5)])
def test_a_measurement_has_its_budget_and_what_it_took(
    budget_s: float | None, count: int
) -> None:
    row = replace(CPU_ROW, max_new_tokens=2)
    told: list[str] = []
    found = measure(
        prepared(row),
        meter=MemoryMeter(torch.device("cpu")),
        options=MeasureOptions(samples_budget_s=budget_s),
        progress=told.append,
    )
    assert len(found.sample_ns) == len(found.first_token_ns) == count
    assert found.samples_budget_s == budget_s
    assert [each for each in told if each.startswith("sample")] == [
        f"sample {number} of 5" for number in range(1, count + 1)
    ]


def test_joules_are_shared_by_the_tokens_of_the_samples_that_were_taken() -> None:
    watch: Any = SimpleNamespace(
        joules=lambda: 1200.0, states=[], problem=None, other_processes=tuple
    )
    found = measuring._gpu_figures(watch, CUDA_ROW, samples=3)
    assert found["joules_per_token"] == 1200.0 / (3 * 200)


def test_the_report_names_the_rows_that_took_fewer() -> None:
    other = replace(CPU_ROW, compile=True)
    all_taken = replace(CPU_ROW, num_samples=2)
    report = Report(
        started="2026-01-02T03:04:05+00:00",
        environment=ENVIRONMENT,
        results=(
            measured(samples_budget_s=20.0),
            measured(other),
            measured(all_taken, samples_budget_s=20.0),
        ),
    )
    line = f"2 of 5 samples in {CPU_ROW.id}: more would have taken over 20 s"
    for text in (as_text(report), as_markdown(report)):
        assert line in text
        assert text.count("would have taken") == 1


def test_a_measurement_of_an_earlier_version_has_no_budget() -> None:
    stored = to_json(replace(MEASUREMENT, samples_budget_s=None))
    stored = stored.replace('"samples_budget_s": null,', "")
    assert "samples_budget_s" not in stored
    assert from_json(Measurement, stored, source="stored") == MEASUREMENT
