"""The processor as a device.

Its memory is the resident set of this process: Linux keeps a high-water mark of it and
lets a process reset it; where that is not possible the size at the time of asking
stands in.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import psutil
from torch.profiler import ProfilerActivity

from llama_perf.devices import driver, processor
from llama_perf.devices.base import Device, slug

STREAM_BYTES = 512 * 2**20
# Where the size of the last-level cache is unknown, and the most that is believed: a
# virtual machine has only a share of the cache it reports.
_CACHE_BYTES = 64 * 2**20


class CpuDevice(Device):
    """The processor and the machine's memory."""

    kind = "cpu"
    activity = ProfilerActivity.CPU

    def is_present(self) -> bool:
        """See `Device.is_present`."""
        return True

    def why_absent(self) -> str:
        """See `Device.why_absent`."""
        raise AssertionError("every machine has a processor")

    @property
    def name(self) -> str:
        """See `Device.name`."""
        return processor.name()

    @property
    def key(self) -> str:
        """See `Device.key`."""
        return f"cpu-{slug(self.name)}-{processor.cores()}c"

    @property
    def features(self) -> str:
        """See `Device.features`."""
        return processor.features()

    def notes(self) -> list[str]:
        """See `Device.notes`: whether there is a GPU that does not answer."""
        answer = None if driver.hidden() else driver.ask_driver()
        if answer is None or answer.problem is None:
            return []
        return [f"no GPU is used: {answer.problem}"]

    def total_memory_bytes(self) -> int:
        """See `Device.total_memory_bytes`."""
        return int(psutil.virtual_memory().total)

    def free_memory_bytes(self) -> int:
        """See `Device.free_memory_bytes`."""
        return int(psutil.virtual_memory().available)

    def cache_bytes(self) -> int:
        """See `Device.cache_bytes`."""
        path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
        text = path.read_text(encoding="ascii") if path.exists() else ""
        match = re.fullmatch(r"(\d+)K\s*", text)
        return min(int(match[1]) * 1024, _CACHE_BYTES) if match else _CACHE_BYTES

    def stream_bytes(self) -> int:
        """See `Device.stream_bytes`."""
        return STREAM_BYTES

    def release_memory(self) -> None:
        """See `Device.release_memory`."""
        super().release_memory()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def synchronize(self) -> None:
        """See `Device.synchronize`: the host runs the work itself."""

    def retained_bytes(self) -> int:
        """See `Device.retained_bytes`: libraries and compiled code among it."""
        return int(psutil.Process().memory_info().rss)

    def reset_peak(self) -> None:
        """See `Device.reset_peak`."""
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return

    def peak_bytes(self) -> int:
        """See `Device.peak_bytes`: the resident set's."""
        current = self.retained_bytes()
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii")
        except OSError:
            return current
        match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return max(int(match[1]) * 1024, current) if match else current
