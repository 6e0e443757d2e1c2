"""Memory that a row took.

On CUDA the allocator's counters; on CPU the resident set of this process, over what
it is once the row is gone: libraries loaded and code compiled on the way stay behind
and are not the row's. Linux keeps a high-water mark of the resident set and lets a
process reset it; where that is not possible the size at the time of asking stands in.
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import torch

from llama_perf.devices.device import release_memory


class MemoryMeter:
    """Peaks of one row. Create it before the row takes any memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._base = 0
        release_memory(device)
        if not self._cuda:
            self._base = psutil.Process().memory_info().rss
        self.reset_peak()

    def reset_peak(self) -> None:
        """Start a new peak from what is in use now."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_high_water()

    def peak_bytes(self) -> int:
        """CUDA: `max_memory_reserved()`, as in the reference; CPU: resident growth."""
        if self._cuda:
            return int(torch.cuda.max_memory_reserved(self._device))
        return max(_high_water_bytes() - self._base, 0)

    def kept_bytes(self) -> int:
        """CPU: what the process kept once the row is gone; ask after dropping it.

        Part of `peak_bytes()` that the row did not cause. 0 on CUDA.
        """
        release_memory(self._device)
        if self._cuda:
            return 0
        return int(psutil.Process().memory_info().rss) - self._base

    def peak_allocated_bytes(self) -> int | None:
        """CUDA: `max_memory_allocated()`; None on CPU."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated(self._device))
        return None


def _reset_high_water() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _high_water_bytes() -> int:
    current = psutil.Process().memory_info().rss
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return int(current)
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return max(int(match[1]) * 1024, current) if match else int(current)
