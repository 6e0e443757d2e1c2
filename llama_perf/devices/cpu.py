"""The processor as a device.

Its memory is the resident set of this process: Linux keeps a high-water mark of it and
lets a process reset it; where that is not possible, it is the size at the time of
asking.
"""

import ctypes
import re
from contextlib import suppress
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
    samples_budget_s = 1.5
    activity = ProfilerActivity.CPU

    def why_absent(self) -> None:
        """See `Device.why_absent`: every machine has a processor."""

    @property
    def name(self) -> str:
        return processor.name()

    @property
    def key(self) -> str:
        return f"cpu-{slug(self.name)}-{processor.cores()}c"

    @property
    def features(self) -> str:
        return processor.features()

    def notes(self) -> list[str]:
        answer = None if driver.hidden() else driver.ask_driver()
        silent = answer is not None and answer.problem
        return [f"no GPU is used: {silent}"] if silent else []

    def total_memory_bytes(self) -> int:
        return int(psutil.virtual_memory().total)

    def free_memory_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def cache_bytes(self) -> int:
        text = processor.system_text("/sys/devices/system/cpu/cpu0/cache/index3/size")
        match = re.fullmatch(r"(\d+)K\s*", text)
        return min(int(match[1]) * 1024, _CACHE_BYTES) if match else _CACHE_BYTES

    def stream_bytes(self) -> int:
        return STREAM_BYTES

    def release_memory(self) -> None:
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
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_bytes(self) -> int:
        """See `Device.peak_bytes`: the resident set's."""
        status = processor.system_text("/proc/self/status")
        match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return max(int(match[1]) * 1024 if match else 0, self.retained_bytes())
