"""A card around each sample, by NVML: clocks, temperature, power, throttling, others.

Reads alone; no setting of the card is changed. Where NVML or a figure of it is missing
the measurement goes on and says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import psutil
import torch

from llama_perf.results.measurement import CardState

# Those that are no fault of what is measured. A power cap is the card's own limit,
# which a faster kernel meets sooner; it is told and spoils nothing.
_SPOILING = {
    "HwThermalSlowdown": "hardware thermal slowdown",
    "HwPowerBrakeSlowdown": "power brake",
    "SwThermalSlowdown": "software thermal slowdown",
}
# Also reported where a card changes its state, and then no clock falls.
_DOUBTFUL = {"HwSlowdown": "hardware slowdown"}
_TOLD = {"SwPowerCap": "power cap"}
# Time spent under a limit, which counts on between two looks. A card at its highest
# voltage is at its reliability limit, though it is as fast as it can be.
_POLICIES = {"THERMAL": "thermal limit"}
_DOUBTFUL_POLICIES = {"RELIABILITY": "reliability limit"}
_SPOILS = {*_SPOILING.values(), *_POLICIES.values()}
_SPOILS_IF_SLOWER = {*_DOUBTFUL.values(), *_DOUBTFUL_POLICIES.values()}
# Of the clock in the samples without such a limit: a card that is only warmer drops by
# one to three steps of 15 MHz, and 5 % is the gate's plain limit on a card.
_FALL = 0.05
# Where no sample is without one, of the highest clock that the card can have, which a
# power cap alone keeps it below by a tenth or two: a hardware slowdown halves it at
# least (NVML's documentation).
_FALL_ALL_ALONG = 0.25
SLICED = (
    "a MIG slice: clocks, temperature, power and limits are the whole card's, and no"
    " energy is told"
)


class CardWatch:
    """What NVML says of a CUDA device; nothing (`problem` says why) of any other."""

    def __init__(self, device: torch.device) -> None:
        self.states: list[CardState] = []
        self.problem: str | None = None
        self._nvml: Any = None
        # Of the card; and of its slice, where torch uses no more of it.
        self._handle: Any = None
        self._slice: Any = None
        self._limited: dict[str, int] = {}
        self._first_mj: int | None = None
        self._last_mj: int | None = None
        if device.type != "cuda":
            self.problem = "no card"
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._find(pynvml, str(torch.cuda.get_device_properties(device).uuid))
        except ImportError:
            self.problem = "NVML: it is not installed (pip install nvidia-ml-py)"
        except Exception as error:
            self.problem = f"NVML: {error or type(error).__name__}"

    def _find(self, nvml: Any, uuid: str) -> None:
        """Find the card that torch uses: by UUID, since its number is another here."""
        try:
            self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:
            self._slice = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
            self._handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
                self._slice
            )
        self._nvml = nvml
        # Some versions of torch tell the card's own UUID there.
        mode = self._ask(nvml.nvmlDeviceGetMigMode, self._handle)
        if self._slice is not None or (mode and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE):
            self.problem = SLICED

    def look(self) -> None:
        """Add the card's state now, with what limited it since the last look."""
        if self._nvml is None:
            return
        nvml, handle = self._nvml, self._handle
        clock, memory = (
            self._ask(nvml.nvmlDeviceGetClockInfo, handle, kind)
            for kind in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM)
        )
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        self.states.append(
            CardState(
                clock_mhz=clock,
                memory_clock_mhz=memory,
                temperature_c=self._ask(
                    nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
                ),
                power_w=None if milliwatts is None else milliwatts / 1000,
                limited_by=tuple(self._limits()),
            )
        )
        energy = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        self._first_mj = energy if self._first_mj is None else self._first_mj
        self._last_mj = energy

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; None where the card gives none."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None

    def _limits(self) -> Iterable[str]:
        nvml, handle = self._nvml, self._handle
        bits = self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        for name, words in (_SPOILING | _DOUBTFUL | _TOLD).items():
            if (bits or 0) & getattr(nvml, f"nvmlClocksEventReason{name}"):
                yield words
        for name, words in (_POLICIES | _DOUBTFUL_POLICIES).items():
            policy = getattr(nvml, f"NVML_PERF_POLICY_{name}")
            status = self._ask(nvml.nvmlDeviceGetViolationStatus, handle, policy)
            if status is None:
                continue
            before = self._limited.get(name)
            self._limited[name] = status.violationTime
            if before is not None and status.violationTime > before:
                yield words

    def spoiled(self) -> str | None:
        """Why what was measured is no verdict's ground: throttled samples; or None.

        The first look is before the first sample, each other one after a sample. A
        limit that is told of cards at full speed too counts where the clock fell.
        """
        found = [
            (number, limit)
            for number, state in enumerate(self.states)
            for limit in state.limited_by
            if limit in _SPOILS or (limit in _SPOILS_IF_SLOWER and self._fell(number))
        ]
        if not found:
            return None
        number, limit = found[0]
        where = "before sample 1" if number == 0 else f"in sample {number}"
        state = self.states[number]
        return (
            f"the card was throttled {where} of {len(self.states) - 1}: {limit}, at"
            f" {state.clock_mhz} MHz and {state.temperature_c} degrees"
        )

    def _fell(self, number: int) -> bool:
        """Whether the SM clock of a look after a sample is below that of the others."""
        clock = self.states[number].clock_mhz
        # Before the first sample a card may idle, which is no slowdown.
        if number == 0 or clock is None:
            return False
        free = [
            each.clock_mhz
            for each in self.states[1:]
            if each.clock_mhz is not None
            and not _SPOILS_IF_SLOWER.intersection(each.limited_by)
        ]
        if free:
            return clock < (1 - _FALL) * median(free)
        nvml = self._nvml
        highest: int | None = self._ask(
            nvml.nvmlDeviceGetMaxClockInfo, self._handle, nvml.NVML_CLOCK_SM
        )
        return highest is not None and clock < (1 - _FALL_ALL_ALONG) * highest

    def joules(self) -> float | None:
        """Energy between the first and the last look; None of a part of a card."""
        if self.problem is not None or self._first_mj is None or self._last_mj is None:
            return None
        return (self._last_mj - self._first_mj) / 1000

    def others(self) -> tuple[str, ...]:
        """Other processes that compute on the card, each by number, name and bytes.

        This one and those that started it are not among them. In a container the
        numbers may be those of the machine outside, where nobody can be told apart:
        then more than this process and its starter are counted.
        """
        if self._nvml is None:
            return ()
        ask = self._nvml.nvmlDeviceGetComputeRunningProcesses
        running = self._ask(ask, self._slice or self._handle) or []
        ours = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
        if running and not any(each.pid in ours for each in running):
            count = len(running) - 2
            return (f"{count} processes outside this container",) if count > 0 else ()
        return tuple(_named(each) for each in running if each.pid not in ours)


def _named(process: Any) -> str:
    try:
        name = psutil.Process(process.pid).name()
    except psutil.Error:
        name = "unknown"
    taken = process.usedGpuMemory
    size = "" if taken is None else f", {taken / 1e9:.2f} GB"
    return f"process {process.pid} ({name}{size})"
