"""Memory that a row took: of the whole process or allocator, and of its tensors.

On a CPU the resident set is counted over its size once the row is gone: libraries
loaded and code compiled on the way stay behind and are not the row's. A resident set
differs by tens of megabytes between processes that do the same; the bytes that tensors
ask for do not. PyTorch's profiler counts those, outside the samples, and so also sees
what an operator allocates and frees again.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llama_perf.devices.device import device_of
from llama_perf.measure.prepare import Prepared

# The prefill's token and a step's: later steps allocate the same again.
_TOKENS = 2


class MemoryMeter:
    """Peaks of one row. Create it before the row takes any memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device_of(device)
        self._device.release_memory()
        self._base_bytes = self._device.retained_bytes()
        self.reset_peak()

    def reset_peak(self) -> None:
        """Start a new peak from what is in use now."""
        self._device.reset_peak()

    def peak_bytes(self) -> int:
        """CUDA: `max_memory_reserved()`, as in the reference; CPU: resident growth."""
        return max(self._device.peak_bytes() - self._base_bytes, 0)

    def retained_bytes(self) -> int:
        """What the process retained once the row is gone; ask after dropping it.

        Part of `peak_bytes()` that the row did not cause. 0 on CUDA.
        """
        self._device.release_memory()
        return self._device.retained_bytes() - self._base_bytes

    def peak_allocated_bytes(self) -> int | None:
        """CUDA: `max_memory_allocated()`; None on CPU."""
        return self._device.peak_allocated_bytes()


def allocated_peak_bytes(prepared: Prepared) -> int:
    """Weights, caches and the most besides in a generation of two tokens, on a CPU.

    Call it after the warm-up: it does not see what is allocated only once.
    """
    generator = torch.Generator().manual_seed(0)
    count, on_cpu = min(_TOKENS, prepared.row.max_new_tokens), [ProfilerActivity.CPU]
    with profile(activities=on_cpu, profile_memory=True, acc_events=True) as profiler:
        prepared.generate(generator, max_new_tokens=count)
    recorded: Any = profiler.profiler
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in recorded.kineto_results.events()
        if event.name() == "[memory]"
    )
    working_bytes: int = max(accumulate((size for _, size in changes), initial=0))
    return prepared.engine.memory_bytes() + working_bytes
