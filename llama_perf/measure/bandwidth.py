"""The memory bandwidth this device shows today, the ceiling of a decoding row.

A read-only stream: the sum of a buffer several times larger than any cache; and on CUDA
a device-to-device copy, read and write counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_CUDA_BYTES = 4 * 2**30
_LEAST_CUDA_BYTES = 16 * 2**20
_CPU_BYTES = 512 * 2**20
_ROUNDS = 10


def read_gb_s(device: torch.device) -> float:
    """The best of several rounds, in GB/s (10^9 bytes)."""
    size = _CPU_BYTES if device.type == "cpu" else _cuda_bytes(device)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    if device.type == "cpu":
        return size / _best_cpu_seconds(source.sum) / 1e9
    return size / best_cuda_seconds(source.sum)[0] / 1e9


def copy_gb_s(device: torch.device) -> float:
    """The same for a copy on a card, whose bytes are read and written."""
    size = _cuda_bytes(device)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_cuda_seconds(lambda: target.copy_(source))[0] / 1e9


def _cuda_bytes(device: torch.device) -> int:
    """As much as a copy has room for twice, and on a card that is full not nothing."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(min(_CUDA_BYTES, free // 4), _LEAST_CUDA_BYTES) // 4 * 4


def _best_cpu_seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    work()
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def best_cuda_seconds(work: Callable[[], object]) -> tuple[float, int]:
    """The best of several rounds by CUDA events, and how often `work` was called."""
    best = float("inf")
    work()
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best, _ROUNDS + 1
