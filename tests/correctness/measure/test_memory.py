from __future__ import annotations

import torch

from llama_perf.measure.memory import MemoryMeter

CPU = torch.device("cpu")
MB = 1_000_000
# Python and the allocator take some of their own: up to 8.3 MB on arm64.
OWN = 16 * MB


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
    assert meter.kept_bytes() < OWN


def test_a_new_peak_forgets_the_one_before() -> None:
    meter = MemoryMeter(CPU)
    tensor = torch.ones(64 * MB // 4)
    assert meter.peak_bytes() >= 60 * MB
    del tensor
    meter.kept_bytes()
    meter.reset_peak()
    assert meter.peak_bytes() < OWN


def test_a_cpu_has_no_allocators_peak() -> None:
    assert MemoryMeter(CPU).peak_allocated_bytes() is None
