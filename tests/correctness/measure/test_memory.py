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
SDPA = {"attention": "sdpa"}
MB = 1_000_000
# Python and the allocator take some of their own: up to 8.3 MB on arm64.
OWN = 16 * MB

ROW = RowSpec(model="stories15M", dtype="float32", device="cpu")
ROW = replace(ROW, max_new_tokens=4, num_samples=1, cache_size=64)


def test_the_meter_sees_what_was_allocated_and_freed_until_a_new_peak() -> None:
    meter = MemoryMeter(CPU)
    assert meter.peak_bytes() < OWN
    tensor = torch.ones(64 * MB // 4)
    assert 60 * MB <= meter.peak_bytes() < 80 * MB
    del tensor
    assert meter.peak_bytes() >= 60 * MB
    assert meter.retained_bytes() < OWN
    meter.reset_peak()
    assert meter.peak_bytes() < OWN
    assert meter.peak_allocated_bytes() is None, "a CPU has no allocator's peak"


@pytest.mark.parametrize(
    "change",
    [{}, {"quantization": "int8wo"}, {"kv_cache_quantization": True}, SDPA],
    ids=str,
)
def test_it_is_the_same_each_time_and_close_to_what_is_predicted(
    change: dict[str, object],
) -> None:
    row = replace(ROW, **change)  # type: ignore[arg-type]
    prepared = prepare(row)
    load_profiler()
    # The first one keeps a few bytes for those after it, as a warm-up does.
    _, first, second = (allocated_peak_bytes(prepared) for _ in range(3))
    assert first == second
    again = allocated_peak_bytes(prepare(row))
    assert again == pytest.approx(first, rel=1e-5)
    # What a product takes inside is not predicted.
    assert first == pytest.approx(predict_row(row).peak_bytes, rel=0.05, abs=6e6)


def test_a_larger_cache_adds_its_bytes_and_nothing_else() -> None:
    rows = [replace(ROW, cache_size=size) for size in (64, 128)]
    small, large = (allocated_peak_bytes(prepare(row)) for row in rows)
    caches = [predict_row(row).cache_bytes for row in rows]
    assert large - small == caches[1] - caches[0]


def test_two_percent_more_is_found_in_what_a_row_measures() -> None:
    found = []
    for size in (64, 64, 4096):
        prepared, meter = prepare(replace(ROW, cache_size=size)), MemoryMeter(CPU)
        options = MeasureOptions(count_work=True)
        found.append(measure(prepared, meter=meter, options=options))
    first, second, larger = (each.peak_allocated_bytes or 0 for each in found)
    assert first == second > 0
    assert larger > 1.02 * first
