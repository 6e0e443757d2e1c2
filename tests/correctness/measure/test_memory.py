"""Memory of a row: resident bytes of the process, exact bytes of its tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llama_perf.measure.memory import MemoryMeter, allocated_peak_bytes
from llama_perf.measure.prepare import predict_row, prepare
from llama_perf.measure.step_profile import load_profiler
from llama_perf.measure.timing import MeasureOptions, measure
from llama_perf.rows.spec import RowSpec

CPU = torch.device("cpu")
MB = 1_000_000
# Python and the allocator take some of their own: up to 8.3 MB on arm64.
OWN = 16 * MB

ROW = RowSpec(
    model="stories15M",
    dtype="float32",
    device="cpu",
    max_new_tokens=4,
    num_samples=1,
    cache_size=64,
)


def test_the_meter_sees_what_was_allocated_and_freed_again() -> None:
    meter = MemoryMeter(CPU)
    quiet = meter.peak_bytes()
    tensor = torch.ones(64 * MB // 4)
    held = meter.peak_bytes()
    del tensor
    freed = meter.peak_bytes()
    assert quiet < OWN
    assert 60 * MB <= held < 80 * MB
    assert freed >= 60 * MB
    assert meter.retained_bytes() < OWN


def test_a_new_peak_forgets_the_one_before() -> None:
    meter = MemoryMeter(CPU)
    tensor = torch.ones(64 * MB // 4)
    assert meter.peak_bytes() >= 60 * MB
    del tensor
    meter.retained_bytes()
    meter.reset_peak()
    assert meter.peak_bytes() < OWN


def test_a_cpu_has_no_allocators_peak() -> None:
    assert MemoryMeter(CPU).peak_allocated_bytes() is None


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
    _, first, second = (allocated_peak_bytes(prepared) for _ in range(3))
    assert first == second
    again = allocated_peak_bytes(prepare(row, checkpoints=None))
    assert again == pytest.approx(first, rel=1e-5)
    # What a product takes inside is not predicted.
    assert first == pytest.approx(predict_row(row).peak_bytes, rel=0.05, abs=6e6)


def test_a_larger_cache_adds_its_bytes_and_nothing_else() -> None:
    peaks = [
        allocated_peak_bytes(prepare(replace(ROW, cache_size=size), checkpoints=None))
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
        meter = MemoryMeter(CPU)
        found.append(
            measure(prepared, meter=meter, options=MeasureOptions(count_work=True))
        )
    first, second, larger = (each.peak_allocated_bytes or 0 for each in found)
    assert first == second > 0
    assert larger > 1.02 * first
