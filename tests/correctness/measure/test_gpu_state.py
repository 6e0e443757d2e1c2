"""A card's state around samples, with NVML made up: no card is needed to test it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llama_perf.measure import machine_notes as machine
from llama_perf.measure.gpu_state import SLICED, GpuWatch
from llama_perf.measure.machine_notes import machine_notes
from llama_perf.report.text import as_text
from llama_perf.results.measurement import CardState
from llama_perf.results.run import Report
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.nvml import Nvml
from tests.correctness.support.record_samples import CUDA_ROW, ENVIRONMENT, measured

pynvml = pytest.importorskip("pynvml")
CUDA = torch.device("cuda")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    found = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    card = SimpleNamespace(uuid="1234", name="NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    return found


def watched(*changes: Callable[[], None]) -> GpuWatch:
    """A look before the first sample and one after each; a change is during one."""
    watch = GpuWatch(CUDA)
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
    assert watch.throttled() is None
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
    assert watch.throttled() == (
        f"the GPU was throttled in sample 2 of 2: {told}, at 1980 MHz and 61 degrees"
    )


def test_a_card_that_is_hot_before_the_first_sample_spoils_it(nvml: Nvml) -> None:
    nvml.reasons = pynvml.nvmlClocksEventReasonSwThermalSlowdown
    assert str(watched(lambda: None).throttled()).startswith(
        "the GPU was throttled before sample 1 of 1: "
    )


def test_a_limit_between_two_looks_is_seen_though_neither_shows_it(nvml: Nvml) -> None:
    def briefly() -> None:
        nvml.violations[pynvml.NVML_PERF_POLICY_THERMAL] += 1

    assert watched(lambda: None).throttled() is None
    assert "in sample 1 of 1: thermal limit" in str(watched(briefly).throttled())


def slow_down(nvml: Nvml) -> None:
    nvml.reasons = pynvml.nvmlClocksEventReasonHwSlowdown


def reach_reliability(nvml: Nvml) -> None:
    nvml.violations[pynvml.NVML_PERF_POLICY_RELIABILITY] += 1


@pytest.mark.parametrize(
    ("limit", "told"),
    [(slow_down, "hardware slowdown"), (reach_reliability, "reliability limit")],
)
def test_a_limit_of_cards_at_full_speed_spoils_only_where_the_clock_fell(
    nvml: Nvml, limit: Callable[[Nvml], None], told: str
) -> None:
    def limited(sm_mhz: int | None) -> GpuWatch:
        def change() -> None:
            limit(nvml)
            nvml.sm_mhz = sm_mhz

        def back() -> None:
            nvml.reasons, nvml.sm_mhz = 0, 1980

        return watched(back, change, back)

    # 1882 of 1980 MHz is 4.9 % less.
    for sm_mhz in (1980, 1882, None):
        watch = limited(sm_mhz)
        assert watch.throttled() is None, sm_mhz
        assert watch.states[2].limited_by == (told,)
    assert str(limited(1880).throttled()).startswith(
        f"the GPU was throttled in sample 2 of 3: {told}, at 1880 MHz"
    )


def test_a_card_that_is_slowed_in_every_sample_is_compared_with_its_highest_clock(
    nvml: Nvml,
) -> None:
    # A hardware slowdown halves the clock; a power cap, which is told, takes less.
    slow_down(nvml)
    for sm_mhz, spoiled in ((990, True), (1484, True), (1486, False), (1905, False)):
        nvml.sm_mhz = sm_mhz
        watch = watched(lambda: None, lambda: None)
        told = f"in sample 1 of 2: hardware slowdown, at {sm_mhz} MHz"
        assert (told in str(watch.throttled())) == spoiled, sm_mhz
    nvml.sm_mhz, nvml.refused = 990, {"highest"}
    assert watched(lambda: None).throttled() is None


def test_most_samples_may_be_slowed(nvml: Nvml) -> None:
    def slowed() -> None:
        slow_down(nvml)
        nvml.sm_mhz = 990

    watch = watched(lambda: None, slowed, slowed, slowed)
    assert "in sample 2 of 4: hardware slowdown" in str(watch.throttled())


def test_a_card_that_idles_before_the_first_sample_is_not_throttled(nvml: Nvml) -> None:
    slow_down(nvml)
    nvml.sm_mhz = 345

    def wake() -> None:
        nvml.reasons, nvml.sm_mhz = 0, 1980

    assert watched(wake, lambda: None).throttled() is None


def test_a_power_cap_and_set_clocks_spoil_nothing(nvml: Nvml) -> None:
    nvml.reasons = (
        pynvml.nvmlClocksEventReasonSwPowerCap
        | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
        | pynvml.nvmlClocksEventReasonGpuIdle
    )
    watch = watched(lambda: None)
    assert watch.throttled() is None
    assert watch.states[0].limited_by == ("power cap",)


def test_what_a_card_does_not_tell_is_none(nvml: Nvml) -> None:
    nvml.refused = {"power", "energy", "reasons", "violations"}
    watch = watched(lambda: None)
    assert watch.states[0].power_w is None
    assert watch.joules() is None
    assert watch.throttled() is None


@pytest.mark.parametrize("told", ["slice", "card"])
def test_a_slice_is_read_off_its_card_and_says_so(nvml: Nvml, told: str) -> None:
    """Torch's UUID is the slice's, or that of its card: with MIG on it is one."""
    if told == "slice":
        nvml.handles = {"MIG-1234": "slice"}
    nvml.mig = pynvml.NVML_DEVICE_MIG_ENABLE
    watch = watched(lambda: None)
    assert watch.problem == SLICED
    assert watch.states[0].clock_mhz == 1980
    assert watch.joules() is None, "the other slices take of it too"
    assert watch.other_processes() == ()
    assert nvml.asked_of == ("slice" if told == "slice" else "handle")
    result = measured(CUDA_ROW, card=tuple(watch.states), card_problem=watch.problem)
    report = Report(started="now", environment=ENVIRONMENT, results=(result,))
    assert f"the GPU's state: {SLICED}\n" in as_text(report)


def test_a_card_without_mig_on_is_whole(nvml: Nvml) -> None:
    nvml.mig = pynvml.NVML_DEVICE_MIG_DISABLE
    assert watched().problem is None


@pytest.mark.parametrize("chosen", ["1", "GPU-5678"])
def test_the_card_is_the_one_that_torch_uses_whatever_its_number(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    second = SimpleNamespace(uuid="5678", name="NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: second)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    GpuWatch(CUDA).other_processes()
    assert nvml.asked_of == "other"
    assert machine_notes(CUDA) == [
        "rows run on NVIDIA A100, 5678, the first of 1 by CUDA_VISIBLE_DEVICES"
        f" ({chosen!r})"
    ]


def test_notes_tell_of_a_driver_without_nvml_of_several_cards_and_of_windows(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "is_wsl", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine_notes(CUDA) == []
    nvml.refused = {"init"}
    (told,) = machine_notes(CUDA)
    assert told.startswith("state of the GPU: NVML: ")
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (told,) = machine_notes(CUDA)
    assert told.endswith("it is not installed (pip install nvidia-ml-py)")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(machine, "is_wsl", lambda: True)
    first, _, last = machine_notes(CUDA)
    assert "the first of 4 by CUDA_VISIBLE_DEVICES (it is not set)" in first
    assert last.startswith("WSL: ")
    assert "power and clocks" in last
    assert "the machine's slower memory" in last
    assert machine_notes(torch.device("cpu")) == [last]


def test_a_driver_that_is_missing_is_told(nvml: Nvml) -> None:
    nvml.refused = {"init"}
    watch = watched(lambda: None)
    assert watch.states == []
    assert str(watch.problem).startswith("NVML: ")
    assert watch.other_processes() == ()


def test_other_processes_are_named_and_ours_are_not(nvml: Nvml) -> None:
    def process(pid: int, taken: int | None = 3_200_000_000) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, usedGpuMemory=taken)

    watch = watched()
    nvml.running = [process(os.getpid()), process(os.getppid())]
    assert watch.other_processes() == ()
    nvml.running.append(process(1 << 22))
    assert watch.other_processes() == (f"process {1 << 22} (unknown, 3.20 GB)",)
    # In a container no number is one of ours.
    nvml.running = [process(1 << 22), process((1 << 22) + 1)]
    assert watch.other_processes() == ()
    nvml.running.append(process((1 << 22) + 2, None))
    assert watch.other_processes() == ("1 processes outside this container",)


def test_a_cpu_has_no_card() -> None:
    watch = GpuWatch(torch.device("cpu"))
    watch.look()
    assert (watch.states, watch.problem, watch.other_processes()) == ([], None, ())


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
    assert f"other processes on the GPU in {CUDA_ROW.id}: process 7 (x)\n" in text
    assert f"clock limited in {CUDA_ROW.id}: power cap\n" in text
    assert "the GPU's state is not known: NVML: no driver\n" in text
    assert from_json(Report, to_json(report).encode(), source="report") == report
