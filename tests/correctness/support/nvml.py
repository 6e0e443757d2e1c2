"""NVML without a driver: what it answers, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pynvml = pytest.importorskip("pynvml")


class Nvml:
    """The driver's side: what it answers, and what it refuses."""

    def __init__(self) -> None:
        self.reasons = 0
        self.violations = {
            pynvml.NVML_PERF_POLICY_THERMAL: 5,
            pynvml.NVML_PERF_POLICY_RELIABILITY: 0,
        }
        self.millijoules = 1_000_000
        self.handles = {"GPU-1234": "handle", "GPU-5678": "other"}
        self.mig: int | None = None
        self.sm_mhz: int | None = 1980
        self.running: list[SimpleNamespace] = []
        self.refused: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.refused:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.handles:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.handles[uuid]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:
        assert handle == "slice"
        return "handle"

    def nvmlDeviceGetMigMode(self, _handle: str) -> list[int]:
        if self.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [self.mig, self.mig]

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int | None:
        # A slice has none of its own.
        assert handle == "handle"
        return {pynvml.NVML_CLOCK_SM: self.sm_mhz, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        assert (handle, kind) == ("handle", pynvml.NVML_CLOCK_SM)
        return int(self._answer("highest", 1980))

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        return int(self._answer("power", 312_500))

    def nvmlDeviceGetTemperature(self, _handle: str, _sensor: int) -> int:
        return 61

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> int:
        return int(self._answer("energy", self.millijoules))

    def nvmlDeviceGetCurrentClocksEventReasons(self, _handle: str) -> int:
        return int(self._answer("reasons", self.reasons))

    def nvmlDeviceGetViolationStatus(self, _handle: str, policy: int) -> Any:
        time = self._answer("violations", self.violations[policy])
        return SimpleNamespace(violationTime=time)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> Any:
        self.asked_of = handle
        return self.running
