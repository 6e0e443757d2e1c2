"""What else the machine does while a row takes its samples.

The system counts the CPU time of each core, of this process and of those it started;
what is left is other processes'. Reads only.
"""

import math
import os
import time
from contextlib import suppress
from typing import NamedTuple

import psutil
import torch

from llama_perf.results.measurement import SystemLoad

# CPU time is counted in hundredths of a second. In less time than this, one of them
# more or less would be a large part of what disturbs a row.
_LEAST_S = 0.25
# Some sandboxes count no CPU time at all.
_LEAST_COUNTED = 0.5


class _Times(NamedTuple):
    """Seconds since any start, summed over the cores that this process may use."""

    wall: float
    counted: float
    busy: float
    steal: float
    own: float


class LoadWatch:
    """The machine from now on, beside a row that computes on `device`."""

    def __init__(self, device: torch.device) -> None:
        # A GPU's row has one thread of the host that sends it work.
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._start: _Times | None = None
        # A system may keep its counters to itself.
        with suppress(OSError, psutil.Error):
            self._cores = _usable_cores()
            self._start = self._look()

    def _look(self) -> _Times:
        own = _own_seconds()
        wall, counted, busy, steal = time.perf_counter(), 0.0, 0.0, 0.0
        per_core = psutil.cpu_times(percpu=True)
        for core in self._cores:
            # A guest's time is part of the user's.
            times = {
                name: seconds
                for name, seconds in per_core[core]._asdict().items()
                if not name.startswith("guest")
            }
            stolen = times.pop("steal", None)
            idle = times["idle"] + times.get("iowait", 0.0)
            counted += sum(times.values()) + (stolen or 0.0)
            busy += sum(times.values()) - idle
            steal += math.nan if stolen is None else stolen
        return _Times(wall, counted, busy, steal, own)

    def load(self) -> SystemLoad | None:
        """The load since the watch began; None where too little is known of it."""
        if self._start is None:
            return None
        now, start = self._look(), self._start
        seconds, counted, busy, steal, own = (
            after - before for after, before in zip(now, start, strict=True)
        )
        core_seconds = seconds * len(self._cores)
        if seconds < _LEAST_S or counted < _LEAST_COUNTED * core_seconds:
            return None
        average = None
        with suppress(OSError):
            average = psutil.getloadavg()[0]
        return SystemLoad(
            seconds=seconds,
            cores=len(self._cores),
            threads=min(self._threads, len(self._cores)),
            other_cores=max(busy - own, 0.0) / seconds,
            steal_share=None if math.isnan(steal) else max(steal, 0.0) / core_seconds,
            load_average=average,
        )


def _usable_cores() -> list[int]:
    """The numbers of the cores that this process may use, whatever its quota."""
    count = len(psutil.cpu_times(percpu=True))
    if not hasattr(os, "sched_getaffinity"):
        return list(range(count))
    usable = sorted(core for core in os.sched_getaffinity(0) if core < count)
    # Where some cores are switched off, the system counts only the others.
    return usable or list(range(count))


def _own_seconds() -> float:
    """CPU time of this process, and of those that it started."""
    own = psutil.Process()
    seconds = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
            seconds += times.children_user + times.children_system
    return seconds
