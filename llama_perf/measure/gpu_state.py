"""A GPU around each sample, by NVML: clocks, temperature, power, limits, neighbours.

It only reads; no setting of the GPU is changed. Where NVML or one of its figures is
missing the measurement goes on and the result says so.
"""

import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from statistics import median
from typing import Any

import psutil
import torch

from llama_perf.devices.device import device_of
from llama_perf.results.measurement import CardState
from llama_perf.words import counted

# What lowers a clock now. All but the last two come from outside the measured code and
# so make a sample worthless.
_REASONS = {
    "HwThermalSlowdown": "hardware thermal slowdown",
    "HwPowerBrakeSlowdown": "power brake",
    "SwThermalSlowdown": "software thermal slowdown",
    "HwSlowdown": "hardware slowdown",
    "SwPowerCap": "power cap",
}
# Time spent under a limit, which NVML adds up between two looks.
_POLICIES = {"THERMAL": "thermal limit", "RELIABILITY": "reliability limit"}
# The first is also reported where a GPU changes its state, and then no clock falls. A
# GPU at its highest voltage is at the second, though it is as fast as it can be.
_IF_SLOWER = {"hardware slowdown", "reliability limit"}
# The GPU's own limit, which a faster kernel meets sooner.
_ONLY_REPORTED = {"power cap"}
# A share of the clock in the samples without such a limit: a GPU that is only warmer
# drops by one to three steps of 15 MHz, and 5 % is the gate's default limit on a GPU.
_MIN_FALL = 0.05
# Where every sample has one, a share of the highest clock that the GPU can have. A
# power cap lowers that by a tenth or two; a hardware slowdown at least halves it
# (NVML's documentation).
_MIN_FALL_FROM_HIGHEST = 0.25
SLICED = (
    "a MIG slice: clocks, temperature, power and limits are the whole GPU's, and"
    " energy is not reported"
)


class GpuWatch:
    """States that NVML reports of a CUDA device; `problem` says why any are missing."""

    def __init__(self, device: torch.device) -> None:
        self.states: list[CardState] = []
        self.problem: str | None = None
        # Handles of the GPU, and of its slice where torch uses only that.
        self._nvml: Any = None
        self._handle = self._slice = None
        self._limited: dict[str, int] = {}
        self._millijoules: list[int | None] = []
        uuid = device_of(device).uuid
        if uuid is None:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._find(pynvml, uuid)
        except ImportError:
            self.problem = "NVML: it is not installed (pip install nvidia-ml-py)"
        except pynvml.NVMLError as error:
            self.problem = f"NVML: {error}"

    def _find(self, nvml: Any, uuid: str) -> None:
        """Find the GPU that torch uses, by UUID: NVML numbers GPUs its own way."""
        try:
            self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:
            self._slice = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
            gpu_of = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle
            self._handle = gpu_of(self._slice)
        self._nvml = nvml
        # Some versions of torch give the GPU's own UUID for a slice.
        mode = self._ask(nvml.nvmlDeviceGetMigMode)
        if self._slice is not None or (mode and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE):
            self.problem = SLICED

    def look(self) -> None:
        """Add the GPU's state now, with what limited it since the last look."""
        if self._nvml is None:
            return
        ask, nvml = self._ask, self._nvml
        clock, temperature = nvml.nvmlDeviceGetClockInfo, nvml.nvmlDeviceGetTemperature
        milliwatts = ask(nvml.nvmlDeviceGetPowerUsage)
        state = CardState(
            clock_mhz=ask(clock, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=ask(clock, nvml.NVML_CLOCK_MEM),
            temperature_c=ask(temperature, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            limited_by=tuple(self._limits()),
        )
        self.states.append(state)
        self._millijoules.append(ask(nvml.nvmlDeviceGetTotalEnergyConsumption))

    def _ask(
        self, question: Callable[..., Any], *arguments: Any, of: Any = None
    ) -> Any:
        """NVML's answer, of the GPU; None where it does not support the question."""
        try:
            return question(of or self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def _limits(self) -> Iterable[str]:
        nvml = self._nvml
        bits = self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons) or 0
        for name, words in _REASONS.items():
            if bits & getattr(nvml, f"nvmlClocksEventReason{name}"):
                yield words
        for name, words in _POLICIES.items():
            policy = getattr(nvml, f"NVML_PERF_POLICY_{name}")
            status = self._ask(nvml.nvmlDeviceGetViolationStatus, policy)
            if status is not None:
                if status.violationTime > self._limited.get(name, math.inf):
                    yield words
                self._limited[name] = status.violationTime

    def throttled(self) -> str | None:
        """Why the samples are no ground for a verdict; None unless one was throttled.

        The first look is before the first sample, each other one after a sample. A
        limit that NVML also reports at full speed counts only where the clock fell.
        """
        for number, state in enumerate(self.states):
            for limit in state.limited_by:
                sure = limit not in _ONLY_REPORTED | _IF_SLOWER
                if sure or (limit in _IF_SLOWER and self._fell(number)):
                    where = "before sample 1" if number == 0 else f"in sample {number}"
                    return (
                        f"the GPU was throttled {where} of {len(self.states) - 1}:"
                        f" {limit}, at {state.clock_mhz} MHz and"
                        f" {state.temperature_c} degrees"
                    )
        return None

    def _fell(self, number: int) -> bool:
        """Whether the SM clock of a look after a sample is below that of the others."""
        clock = self.states[number].clock_mhz
        # Before the first sample a GPU may idle, which is no slowdown.
        if number == 0 or clock is None:
            return False
        unlimited_mhz = [
            state.clock_mhz
            for state in self.states[1:]
            if state.clock_mhz is not None
            and not _IF_SLOWER.intersection(state.limited_by)
        ]
        if unlimited_mhz:
            return clock < (1 - _MIN_FALL) * median(unlimited_mhz)
        nvml = self._nvml
        highest = self._ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM)
        return bool(highest and clock < (1 - _MIN_FALL_FROM_HIGHEST) * highest)

    def joules(self) -> float | None:
        """Energy between the first and the last look; None of a part of a GPU."""
        ends = self._millijoules[:1] + self._millijoules[-1:]
        known = [millijoules for millijoules in ends if millijoules is not None]
        if self.problem is not None or len(known) < 2:
            return None
        return (known[1] - known[0]) / 1000

    def other_processes(self) -> tuple[str, ...]:
        """Other processes that compute on the GPU, each by number, name and bytes.

        This process and those that started it are left out. In a container NVML may
        give the numbers that processes have outside it, so that none can be recognised:
        then all but two, this process and its starter, count as others.
        """
        if self._nvml is None:
            return ()
        question = self._nvml.nvmlDeviceGetComputeRunningProcesses
        running = self._ask(question, of=self._slice) or []
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        others = [process for process in running if process.pid not in ours]
        if others and len(others) == len(running):
            count = len(others) - 2
            outside = f"{counted(count, 'process')} outside this container"
            return (outside,) if count > 0 else ()
        described = []
        for process in others:
            name, taken = "unknown", process.usedGpuMemory
            with suppress(psutil.Error):
                name = psutil.Process(process.pid).name()
            size = "" if taken is None else f", {taken / 1e9:.2f} GB"
            described.append(f"process {process.pid} ({name}{size})")
        return tuple(described)
