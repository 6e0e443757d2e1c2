"""Bytes that a CPU row's tensors take: exact where a resident set is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llama_perf.measure.allocated import allocated_peak
from llama_perf.measure.memory import MemoryMeter
from llama_perf.measure.prepare import predict_row, prepare
from llama_perf.measure.step_profile import load_profiler
from llama_perf.measure.timing import measure
from llama_perf.rows.spec import RowSpec

ROW = RowSpec(
    model="stories15M",
    dtype="float32",
    device="cpu",
    max_new_tokens=4,
    num_samples=1,
    cache_size=64,
)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"quantization": "int8wo"},
        {"kv_cache_quantization": True},
        {"attention": "sdpa"},
    ],
    ids=str,
)
def test_it_is_the_same_each_time_and_close_to_what_is_predicted(
    change: dict[str, object],
) -> None:
    row = replace(ROW, **change)  # type: ignore[arg-type]
    prepared = prepare(row, checkpoints=None)
    load_profiler()
    # The first one keeps a few bytes for those after it, as a warm-up does.
    _, first, second = (allocated_peak(prepared) for _ in range(3))
    assert first == second
    again = allocated_peak(prepare(row, checkpoints=None))
    assert again == pytest.approx(first, rel=1e-5)
    # What a product takes inside is not predicted.
    assert first == pytest.approx(predict_row(row).peak_bytes, rel=0.05, abs=6e6)


def test_a_larger_cache_adds_its_bytes_and_nothing_else() -> None:
    peaks = [
        allocated_peak(prepare(replace(ROW, cache_size=size), checkpoints=None))
        for size in (64, 128)
    ]
    caches = [
        predict_row(replace(ROW, cache_size=size)).cache_bytes for size in (64, 128)
    ]
    assert peaks[1] - peaks[0] == caches[1] - caches[0]


def test_two_percent_more_is_found_in_what_a_row_measures() -> None:
    found = []
    for size in (64, 64, 4096):
        prepared = prepare(replace(ROW, cache_size=size), checkpoints=None)
        meter = MemoryMeter(torch.device("cpu"))
        found.append(measure(prepared, meter=meter, count_work=True))
    first, second, larger = (each.peak_allocated_bytes or 0 for each in found)
    assert first == second > 0
    assert larger > 1.02 * first
