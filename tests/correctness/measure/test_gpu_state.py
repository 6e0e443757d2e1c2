"""A GPU's state around samples, with NVML made up: no GPU is needed to test it."""

import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.devices import processor
from llama_perf.measure.environment import machine_notes
from llama_perf.measure.gpu_state import SLICED, GpuWatch
from llama_perf.report.text import as_text
from llama_perf.results.measurement import CardState
from llama_perf.results.run import Report
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.record_samples import CUDA_ROW, measured, report_of

pynvml = pytest.importorskip("pynvml")
CUDA = torch.device("cuda")
HEAT, BRAKE, SOFT, SLOW = (
    {"reasons": getattr(pynvml, f"nvmlClocksEventReason{name}Slowdown")}
    for name in ("HwThermal", "HwPowerBrake", "SwThermal", "Hw")
)
CAPPED = {
    "reasons": pynvml.nvmlClocksEventReasonSwPowerCap
    | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    | pynvml.nvmlClocksEventReasonGpuIdle
}
HALF, MORE = {**SLOW, "sm_mhz": 990}, {**SLOW, "sm_mhz": 1484}
FAST = {"reasons": 0, "sm_mhz": 1980}
SOFTWARE, HARDWARE = "software thermal slowdown", "hardware slowdown"
STATE = CardState(temperature_c=61, power_w=312.5)
STATE = replace(STATE, clock_mhz=1980, memory_clock_mhz=2619)

refuse = Mock(side_effect=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver's side: what it answers, of fields that a test changes."""
    made = SimpleNamespace(**vars(pynvml))
    made.reasons, made.sm_mhz, made.thermal, made.reliability = 0, 1980, 5, 0
    made.millijoules, made.running, made.mig = 1_000_000, [], None
    made.handles = {"GPU-1234": "handle", "GPU-5678": "other"}
    made.gpu = SimpleNamespace(uuid="1234", name="NVIDIA A100")

    def clock(handle: str, kind: int) -> Any:
        assert handle != "slice", "a slice has no clock of its own"
        return {pynvml.NVML_CLOCK_SM: made.sm_mhz, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    def violations(_handle: str, policy: int) -> SimpleNamespace:
        thermal = policy == pynvml.NVML_PERF_POLICY_THERMAL
        time = made.thermal if thermal else made.reliability
        return SimpleNamespace(violationTime=time)

    def running(handle: str) -> list[SimpleNamespace]:
        made.asked_of = handle
        return list(made.running)

    made.nvmlInit = lambda: None
    answers = {
        "HandleByUUID": lambda uuid: made.handles.get(uuid) or refuse(),
        "DeviceHandleFromMigDeviceHandle": {"slice": "handle"}.__getitem__,
        "MigMode": lambda _: refuse() if made.mig is None else [made.mig, made.mig],
        "ClockInfo": clock,
        "MaxClockInfo": lambda _, kind: {pynvml.NVML_CLOCK_SM: 1980}[kind],
        "PowerUsage": lambda _: 312_500,
        "Temperature": lambda _, _sensor: 61,
        "TotalEnergyConsumption": lambda _: made.millijoules,
        "CurrentClocksEventReasons": lambda _: made.reasons,
        "ViolationStatus": violations,
        "ComputeRunningProcesses": running,
    }
    for name, answer in answers.items():
        setattr(made, f"nvmlDeviceGet{name}", answer)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: made.gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def watched(nvml: Any, *changes: dict[str, Any]) -> GpuWatch:
    """A look after each change: one before the first sample, the others during one."""
    watch = GpuWatch(CUDA)
    for change in changes or [{}]:
        vars(nvml).update(change)
        watch.look()
    return watch


def test_states_and_energy_are_those_of_the_gpu_or_none(nvml: Any) -> None:
    watch = watched(nvml, {}, {"millijoules": 1_002_500}, {"millijoules": 1_005_000})
    assert watch.states == [STATE] * 3
    assert (watch.joules(), watch.throttled(), watch.problem) == (5.0, None, None)
    for question in (
        *("PowerUsage", "TotalEnergyConsumption", "ViolationStatus"),
        *("CurrentClocksEventReasons", "ComputeRunningProcesses"),
    ):
        setattr(nvml, f"nvmlDeviceGet{question}", refuse)
    watch = watched(nvml, {}, {})
    assert watch.states == [replace(STATE, power_w=None)] * 2
    assert (watch.joules(), watch.throttled()) == (None, None)
    assert watch.other_processes() == ()


@pytest.mark.parametrize(
    ("changes", "limit", "throttled"),
    [
        ([{}, {}, HEAT], "hardware thermal slowdown", ("in sample 2 of 2", 1980)),
        ([{}, {}, BRAKE], "power brake", ("in sample 2 of 2", 1980)),
        ([{}, {}, SOFT], SOFTWARE, ("in sample 2 of 2", 1980)),
        # Hot before the first sample.
        ([SOFT, {}], SOFTWARE, ("before sample 1 of 1", 1980)),
        # Between two looks, though neither shows it.
        ([{}, {"thermal": 6}], "thermal limit", ("in sample 1 of 1", 1980)),
        # Slowed in every sample: compared with its highest clock, of which a hardware
        # slowdown takes half, and a power cap, which is told, less.
        ([HALF, {}, {}], HARDWARE, ("in sample 1 of 2", 990)),
        ([MORE, {}, {}], HARDWARE, ("in sample 1 of 2", 1484)),
        # Slowed in most samples.
        ([{}, {}, HALF, {}, {}], HARDWARE, ("in sample 2 of 4", 990)),
        # Too little for a slowdown in every sample, or it is not known.
        ([{**SLOW, "sm_mhz": 1486}, {}, {}], HARDWARE, None),
        ([{**SLOW, "sm_mhz": 1905}, {}, {}], HARDWARE, None),
        ([{**HALF, "nvmlDeviceGetMaxClockInfo": refuse}, {}], HARDWARE, None),
        # Idle before the first sample.
        ([{**SLOW, "sm_mhz": 345}, FAST, {}], HARDWARE, None),
        # A power cap and set clocks.
        ([CAPPED, {}], "power cap", None),
        # What GPUs at full speed have too counts where the clock of one sample fell;
        # 1882 of 1980 MHz is 4.9 % less.
        *(
            ([{}, FAST, {**sign, "sm_mhz": mhz}, FAST], limit, throttled)
            for sign, limit in (
                (SLOW, HARDWARE),
                ({"reliability": 1}, "reliability limit"),
            )
            for mhz, throttled in (
                *((1980, None), (1882, None), (None, None)),
                (1880, ("in sample 2 of 3", 1880)),
            )
        ),
    ],
)
def test_a_throttled_sample_spoils_the_row(
    nvml: Any,
    changes: list[dict[str, Any]],
    limit: str,
    throttled: tuple[str, int] | None,
) -> None:
    watch = watched(nvml, *changes)
    assert {name for state in watch.states for name in state.limited_by} == {limit}
    message = None
    if throttled is not None:
        where, mhz = throttled
        gpu = f"{mhz} MHz and 61 degrees"
        message = f"the GPU was throttled {where}: {limit}, at {gpu}"
    assert watch.throttled() == message


@pytest.mark.parametrize("uuid_of", ["slice", "gpu"])
def test_a_slice_is_read_off_its_gpu_and_says_so(nvml: Any, uuid_of: str) -> None:
    """Torch's UUID is the slice's, or that of its GPU: with MIG on it is one."""
    if uuid_of == "slice":
        nvml.handles = {"MIG-1234": "slice"}
    nvml.mig = pynvml.NVML_DEVICE_MIG_ENABLE
    watch = watched(nvml, {}, {})
    assert watch.problem == SLICED
    assert watch.states[0].clock_mhz == 1980
    assert watch.joules() is None, "the other slices take of it too"
    assert watch.other_processes() == ()
    assert nvml.asked_of == ("slice" if uuid_of == "slice" else "handle")
    result = measured(CUDA_ROW, card=tuple(watch.states), card_problem=watch.problem)
    assert f"the GPU's state: {SLICED}\n" in as_text(report_of(result))
    nvml.handles, nvml.mig = {"GPU-1234": "handle"}, pynvml.NVML_DEVICE_MIG_DISABLE
    assert watched(nvml).problem is None


@pytest.mark.parametrize("chosen", ["1", "GPU-5678"])
def test_the_gpu_is_the_one_that_torch_uses_whatever_its_number(
    nvml: Any, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    visible = "CUDA_VISIBLE_DEVICES"
    monkeypatch.setenv(visible, chosen)
    nvml.gpu.uuid = "5678"
    GpuWatch(CUDA).other_processes()
    assert nvml.asked_of == "other"
    assert machine_notes(CUDA) == [
        f"rows run on NVIDIA A100, 5678, the first of 1 by {visible} ({chosen!r})"
    ]


def test_notes_tell_of_a_driver_without_nvml_of_several_gpus_and_of_windows(
    nvml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "is_wsl", lambda: False)
    assert machine_notes(CUDA) == []
    nvml.nvmlInit = refuse
    assert machine_notes(CUDA) == ["state of the GPU: NVML: Not Supported"]
    for device in (CUDA, torch.device("cpu")):
        watch = GpuWatch(device)
        watch.look()
        assert (watch.states, watch.other_processes()) == ([], ())
    assert watch.problem is None, "a CPU has no GPU"
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (note,) = machine_notes(CUDA)
    assert note.endswith("it is not installed (pip install nvidia-ml-py)")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(processor, "is_wsl", lambda: True)
    first, _, last = machine_notes(CUDA)
    assert "the first of 4 by CUDA_VISIBLE_DEVICES (it is not set)" in first
    assert last.startswith("WSL: ")
    assert "power and clocks" in last
    assert "the machine's slower memory" in last
    assert machine_notes(torch.device("cpu")) == [last]


def test_other_processes_are_named_and_ours_are_not(nvml: Any) -> None:
    watch, ours, unknown = watched(nvml), [os.getpid(), os.getppid()], 1 << 22
    for pids, taken, others in (
        (ours, 3_200_000_000, ()),
        ([*ours, unknown], 3_200_000_000, (f"process {unknown} (unknown, 3.20 GB)",)),
        ([*ours, unknown], None, (f"process {unknown} (unknown)",)),
        # In a container no number is one of ours.
        ([unknown, unknown + 1], None, ()),
        ([unknown] * 3, None, ("1 process outside this container",)),
    ):
        nvml.running = [SimpleNamespace(pid=pid, usedGpuMemory=taken) for pid in pids]
        assert watch.other_processes() == others


def test_a_report_tells_of_neighbours_and_limits() -> None:
    state = CardState(clock_mhz=1980, limited_by=("power cap",))
    result = measured(CUDA_ROW, card=(state, state), neighbours=("process 7 (x)",))
    unknown = measured(replace(CUDA_ROW, compile=True), card_problem="NVML: no driver")
    report = report_of(result, unknown)
    text = as_text(report)
    disturbed = f"{CUDA_ROW.id}: other processes on the GPU: process 7 (x)\n"
    assert f"disturbed (*): {disturbed}" in text
    assert f"clock limited in {CUDA_ROW.id}: power cap\n" in text
    assert "the GPU's state is not known: NVML: no driver\n" in text
    assert from_json(Report, to_json(report).encode(), source="report") == report
