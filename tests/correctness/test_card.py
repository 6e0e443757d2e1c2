"""A card's state around samples, with NVML made up: no card is needed to test it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from record_samples import CUDA_ROW, ENVIRONMENT, measured

from llama_perf.card import CardWatch
from llama_perf.codec import from_json, to_json
from llama_perf.records import CardState, Report
from llama_perf.report.render import as_text

pynvml = pytest.importorskip("pynvml")
CUDA = torch.device("cuda")


class Nvml:
    """The driver's side: what it answers, and what it refuses."""

    def __init__(self) -> None:
        self.reasons = 0
        self.clock: int | None = 1980
        self.violations = {
            pynvml.NVML_PERF_POLICY_THERMAL: 5,
            pynvml.NVML_PERF_POLICY_RELIABILITY: 0,
        }
        self.millijoules = 1_000_000
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
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetClockInfo(self, _handle: str, kind: int) -> int:
        clock = self._answer("clock", self.clock)
        return int({pynvml.NVML_CLOCK_SM: clock, pynvml.NVML_CLOCK_MEM: 2619}[kind])

    def nvmlDeviceGetMaxClockInfo(self, _handle: str, kind: int) -> int:
        assert kind == pynvml.NVML_CLOCK_SM
        return 1980

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

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> Any:
        return self.running


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    found = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", found)  # type: ignore[arg-type]
    card = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    return found


def watched(*changes: Callable[[], None]) -> CardWatch:
    """A look before the first sample and one after each; a change is during one."""
    watch = CardWatch(CUDA)
    watch.look()
    for change in changes:
        change()
        watch.look()
    return watch


def test_states_and_energy_are_those_of_the_card(nvml: Nvml) -> None:
    def work() -> None:
        nvml.millijoules += 2500

    watch = watched(work, work)
    state = CardState(
        clock_mhz=1980, memory_clock_mhz=2619, temperature_c=61, power_w=312.5
    )
    assert watch.states == [state] * 3
    assert watch.joules() == 5.0
    assert watch.spoiled() is None
    assert watch.problem is None


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("HwThermalSlowdown", "hardware thermal slowdown"),
        ("HwPowerBrakeSlowdown", "power brake"),
        ("SwThermalSlowdown", "software thermal slowdown"),
    ],
)
def test_a_throttled_sample_spoils_the_row(nvml: Nvml, reason: str, told: str) -> None:
    def throttle() -> None:
        nvml.reasons = getattr(pynvml, f"nvmlClocksEventReason{reason}")

    watch = watched(lambda: None, throttle)
    assert watch.spoiled() == (
        f"the card was throttled in sample 2 of 2: {told}, at 1980 MHz and 61 degrees"
    )


def test_a_card_that_is_hot_before_the_first_sample_spoils_it(nvml: Nvml) -> None:
    nvml.reasons = pynvml.nvmlClocksEventReasonSwThermalSlowdown
    assert str(watched(lambda: None).spoiled()).startswith(
        "the card was throttled before sample 1 of 1: "
    )


def test_a_limit_between_two_looks_is_seen_though_neither_shows_it(nvml: Nvml) -> None:
    def briefly() -> None:
        nvml.violations[pynvml.NVML_PERF_POLICY_THERMAL] += 1

    assert watched(lambda: None).spoiled() is None
    assert "in sample 1 of 1: thermal limit" in str(watched(briefly).spoiled())


REASON = "nvmlClocksEventReasonHwSlowdown"


@pytest.mark.parametrize("told", ["hardware slowdown", "reliability limit"])
@pytest.mark.parametrize("clock", [1980, 1700, 990, 400])
def test_a_limit_of_a_state_spoils_only_where_the_clock_fell(
    nvml: Nvml, told: str, clock: int
) -> None:
    def limited() -> None:
        nvml.clock = clock
        if told == "hardware slowdown":
            nvml.reasons = getattr(pynvml, REASON)
        else:
            nvml.violations[pynvml.NVML_PERF_POLICY_RELIABILITY] += 1

    watch = watched(lambda: None, limited)
    assert told in watch.states[-1].limited_by
    where = f"in sample 2 of 2: {told}, at {clock} MHz"
    assert (where in str(watch.spoiled())) == (clock < 1000)


def test_a_card_that_is_slowed_all_along_is_compared_with_its_highest_clock(
    nvml: Nvml,
) -> None:
    nvml.reasons, nvml.clock = getattr(pynvml, REASON), 960
    assert "before sample 1 of 1: hardware slowdown" in str(
        watched(lambda: None).spoiled()
    )
    nvml.clock = 1905
    assert watched(lambda: None).spoiled() is None


def test_a_slowdown_spoils_where_no_clock_is_told(nvml: Nvml) -> None:
    nvml.reasons, nvml.refused = getattr(pynvml, REASON), {"clock"}
    assert "hardware slowdown" in str(watched(lambda: None).spoiled())


def test_a_power_cap_and_set_clocks_spoil_nothing(nvml: Nvml) -> None:
    nvml.reasons = (
        pynvml.nvmlClocksEventReasonSwPowerCap
        | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
        | pynvml.nvmlClocksEventReasonGpuIdle
    )
    watch = watched(lambda: None)
    assert watch.spoiled() is None
    assert watch.states[0].limited_by == ("power cap",)


def test_what_a_card_does_not_tell_is_none(nvml: Nvml) -> None:
    nvml.refused = {"power", "energy", "reasons", "violations"}
    watch = watched(lambda: None)
    assert watch.states[0].power_w is None
    assert watch.joules() is None
    assert watch.spoiled() is None


def test_a_driver_that_is_missing_is_told(nvml: Nvml) -> None:
    nvml.refused = {"init"}
    watch = watched(lambda: None)
    assert watch.states == []
    assert str(watch.problem).startswith("NVML: ")
    assert watch.others() == ()


def test_other_processes_are_named_and_ours_are_not(nvml: Nvml) -> None:
    def process(pid: int, taken: int | None = 3_200_000_000) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, usedGpuMemory=taken)

    watch = watched()
    nvml.running = [process(os.getpid()), process(os.getppid())]
    assert watch.others() == ()
    nvml.running.append(process(1 << 22))
    assert watch.others() == (f"process {1 << 22} (unknown, 3.20 GB)",)
    # In a container no number is one of ours.
    nvml.running = [process(1 << 22), process((1 << 22) + 1)]
    assert watch.others() == ()
    nvml.running.append(process((1 << 22) + 2, None))
    assert watch.others() == ("1 processes outside this container",)


def test_a_cpu_has_no_card() -> None:
    watch = CardWatch(torch.device("cpu"))
    watch.look()
    assert (watch.states, watch.problem, watch.others()) == ([], "no card", ())


def test_a_report_tells_of_neighbours_and_limits() -> None:
    state = CardState(clock_mhz=1980, limited_by=("power cap",))
    result = measured(CUDA_ROW, card=(state, state), neighbours=("process 7 (x)",))
    unknown = measured(replace(CUDA_ROW, compile=True), card_problem="NVML: no driver")
    report = Report(
        started="2026-01-02T03:04:05+00:00",
        environment=ENVIRONMENT,
        results=(result, unknown),
    )
    text = as_text(report)
    assert f"on the card beside {CUDA_ROW.id}: process 7 (x)\n" in text
    assert f"limited in {CUDA_ROW.id}: power cap\n" in text
    assert "the card's state is not known: NVML: no driver\n" in text
    assert from_json(Report, to_json(report).encode(), source="report") == report
