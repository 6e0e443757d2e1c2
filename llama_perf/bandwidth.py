"""The memory bandwidth this device shows today, the ceiling of a decoding row.

A read-only stream: the sum of a buffer several times larger than any cache. On CUDA
a device-to-device copy, read and write counted, is timed too, and the faster of the
two is the ceiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

_CUDA_BYTES = 4 * 2**30
_CPU_BYTES = 512 * 2**20
_ROUNDS = 10


def measure_bandwidth(device: torch.device) -> float:
    """The best of several rounds, in GB/s (10^9 bytes)."""
    if device.type == "cpu":
        source = torch.ones(_CPU_BYTES // 4, dtype=torch.float32)
        return _CPU_BYTES / _best_cpu_seconds(source.sum) / 1e9
    best = _cuda_bandwidth(device)
    torch.cuda.empty_cache()
    return best


def _cuda_bandwidth(device: torch.device) -> float:
    free, _ = torch.cuda.mem_get_info(device)
    count = min(_CUDA_BYTES, free // 4) // 4
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    read = count * 4 / _best_cuda_seconds(source.sum)
    copy = 2 * count * 4 / _best_cuda_seconds(lambda: target.copy_(source))
    return max(read, copy) / 1e9


def _best_cpu_seconds(work: Callable[[], Tensor]) -> float:
    best = float("inf")
    work()
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _best_cuda_seconds(work: Callable[[], Tensor]) -> float:
    best = float("inf")
    work()
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best
