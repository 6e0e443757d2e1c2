"""A card around each sample, by NVML: clocks, temperature, power, throttling, others.

Reads alone; no setting of the card is changed. Where NVML or a figure of it is missing
the measurement goes on and says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch

from llama_perf.records import CardState

# Those that are no fault of what is measured. A power cap is the card's own limit,
# which a faster kernel meets sooner; it is told and spoils nothing.
_SPOILING = {
    "HwThermalSlowdown": "hardware thermal slowdown",
    "HwPowerBrakeSlowdown": "power brake",
    "SwThermalSlowdown": "software thermal slowdown",
}
_HW_SLOWDOWN = "hardware slowdown"
_TOLD = {"SwPowerCap": "power cap", "HwSlowdown": _HW_SLOWDOWN}
# Time spent under a limit, which counts on between two looks.
_THERMAL, _RELIABILITY = "thermal limit", "reliability limit"
_POLICIES = {"THERMAL": _THERMAL, "RELIABILITY": _RELIABILITY}
# These are also reported where the card changes its state, or lowers its highest clock
# by a step for its voltage's sake. They spoil a row where the clock really fell: a
# hardware slowdown halves it or more (NVML's documentation), so between half and all.
_SPOILING_IF_SLOWER = {_HW_SLOWDOWN, _RELIABILITY}
_FALLEN = 0.75


class CardWatch:
    """What NVML says of a CUDA device; nothing (`problem` says why) of any other."""

    def __init__(self, device: torch.device) -> None:
        self.states: list[CardState] = []
        self.problem: str | None = None
        self._nvml: Any = None
        self._handle: Any = None
        self._limited: dict[str, int] = {}
        self._first_mj: int | None = None
        self._last_mj: int | None = None
        if device.type != "cuda":
            self.problem = "no card"
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
        except Exception as error:
            # Not installed, no driver of that version, or a part of a card.
            self.problem = f"NVML: {error or type(error).__name__}"

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
        for name, words in (_SPOILING | _TOLD).items():
            if (bits or 0) & getattr(nvml, f"nvmlClocksEventReason{name}"):
                yield words
        for name, words in _POLICIES.items():
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

        The first look is before the first sample, each other one after a sample.
        """
        spoiling = {*_SPOILING.values(), _THERMAL}
        found = [
            (number, limit)
            for number, state in enumerate(self.states)
            for limit in state.limited_by
            if limit in spoiling or (limit in _SPOILING_IF_SLOWER and self._fell(state))
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

    def _fell(self, state: CardState) -> bool:
        """Whether the clock was far below that of the looks without such a limit.

        Where every look has one, below the highest that the card can have.
        """
        free = [
            each.clock_mhz
            for each in self.states
            if not _SPOILING_IF_SLOWER.intersection(each.limited_by)
        ]
        known = [clock for clock in free if clock is not None]
        kind = self._nvml.NVML_CLOCK_SM
        highest = (
            max(known)
            if known
            else self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, self._handle, kind)
        )
        if highest is None or state.clock_mhz is None:
            # The card tells of a limit, and nothing speaks against it.
            return True
        return bool(state.clock_mhz < _FALLEN * highest)

    def joules(self) -> float | None:
        """Energy between the first and the last look."""
        if self._first_mj is None or self._last_mj is None:
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
        running = self._ask(ask, self._handle) or []
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
