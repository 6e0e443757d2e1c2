"""A GPU that torch cannot use is told with what to do, and no CPU takes its place."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from llama_perf.devices import driver
from llama_perf.devices.device import check_device, device_of, unasked_device
from llama_perf.devices.driver import Driver, ask_driver, build_for, why_unseen
from llama_perf.errors import NotRunnable, UserError
from llama_perf.measure.environment import machine_notes
from llama_perf.run.options import RunRequest
from tests.correctness.support import nvidia_smi
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.errors import refusal
from tests.correctness.support.plugin_project import Project

pytest_plugins = ["pytester"]
H100 = "NVIDIA H100 80GB HBM3"
TOO_OLD = (
    f"nvidia-smi lists {H100} (driver 550.54.15, CUDA 12.4), too old for torch"
    " 2.13.0+cu130 of CUDA 13.0: update the driver to one for CUDA 13.0 or newer"
)


@pytest.fixture(autouse=True)
def _torch_of_cuda_13_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    first = iter([True])

    def no_gpu() -> bool:
        # It warns once a process, as torch does.
        if next(first, False):
            warnings.warn("CUDA initialization: driver too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", no_gpu)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a GPU and a driver for CUDA 12.4."""
    nvidia_smi.install(monkeypatch, tmp_path / "bin")


def test_nvidia_smi_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    second = nvidia_smi.GPU.replace("GPU 0", "GPU 1")
    gpus = f"{nvidia_smi.GPU}\n{nvidia_smi.SLICE}\n{second}"
    nvidia_smi.install(monkeypatch, tmp_path / "two", gpus=gpus, cuda="13.1")
    assert ask_driver() == Driver(gpus=(H100, H100), version="550.54.15", cuda="13.1")
    says = "| NVIDIA-SMI 590.1  Driver Version: 590.1  CUDA UMD Version: 13.1 |"
    nvidia_smi.install(monkeypatch, tmp_path / "umd", says=says)
    problem = f"nvidia-smi says {says!r}"
    assert ask_driver() == Driver(version="590.1", cuda="13.1", problem=problem)


@pytest.mark.parametrize(
    ("cuda", "build"),
    [
        *(("13.1", "cu130"), ("13.0", "cu130"), ("12.9", "cu129"), ("12.8", "cu128")),
        *(("12.6", "cu126"), ("12.5", None), ("11.8", None)),
    ],
)
def test_a_cpu_build_is_told_what_fits(cuda: str, build: str | None) -> None:
    assert build_for(cuda) == build
    listed = Driver(gpus=("A",), version="1.2", cuda=cuda)
    pip = f"{sys.executable} -m pip install --force-reinstall torch --index-url"
    wanted = "update the driver to one for CUDA 12.6 or newer"
    if build:
        wanted = f"{pip} https://download.pytorch.org/whl/{build}"
    assert why_unseen(listed, torch="2.13.0+cpu", built_for=None) == (
        f"nvidia-smi lists A (driver 1.2, CUDA {cuda}), and torch 2.13.0+cpu is a CPU"
        f" build: {wanted}"
    )


def test_a_device_that_is_not_there_is_told_by_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = Driver(gpus=("A", "A"), version="580.1", cuda="13.0")
    chosen = "CUDA_VISIBLE_DEVICES='7' names none of them: give an index from 0 to 1"
    for reason in ("cannot use it", chosen):
        assert reason in why_unseen(listed, torch="2.13.0", built_for="13.0")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")


@pytest.mark.usefixtures("smi")
def test_no_processor_takes_the_place_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    reason = f"no CUDA device on this machine can be used: {TOO_OLD}"
    assert refusal(check_device, "cuda", error=NotRunnable) == reason
    assert TOO_OLD in refusal(unasked_device, error=UserError)
    message = cli.refusal("run", "--row", "*none*")
    assert message.endswith(f"{TOO_OLD}; --set cpu runs the processor's rows")
    for chosen in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert unasked_device() == "cpu"
        assert "hides it" in refusal(check_device, "cuda", error=NotRunnable)


@pytest.mark.usefixtures("smi")
def test_the_plugin_refuses_unless_rows_were_asked_for(project: Project) -> None:
    refused = project.pytester.runpytest_inprocess(
        project.path / "tests" / "perf", "-p", "no:hypothesispytest"
    )
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines([f"ERROR: {TOO_OLD}*"])
    project.run("--row=*none*").assert_outcomes(passed=1)


def test_a_machine_without_a_gpu_runs_what_it_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_WSL", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unasked_device() == "cpu"
    assert device_of("cuda").why_absent() == "no CUDA device on this machine"
    # As in a container that has the tool alone.
    says = "NVIDIA-SMI has failed because it couldn't communicate with the driver."
    nvidia_smi.install(monkeypatch, tmp_path / "alone", says=says, code=9)
    assert unasked_device() == "cpu"
    assert says in str(device_of("cuda").why_absent())
    cpu = torch.device("cpu")
    assert machine_notes(cpu) == [f"no GPU is used: nvidia-smi says {says!r}"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_notes(cpu) == []
    assert RunRequest().named_set == "cpu"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 9", "nvidia-smi ended with exit code 9"),
        ("echo No devices were found", "nvidia-smi says 'No devices were found'"),
        ("true", "nvidia-smi lists no GPU"),
        (r"printf '\377\376'", "nvidia-smi says '\N{REPLACEMENT CHARACTER}"),
        ("exec sleep 60", "nvidia-smi gave no answer within 0.1 s"),
        (None, "nvidia-smi cannot be run: Exec format error"),
    ],
)
def test_an_nvidia_smi_that_lists_no_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, problem: str
) -> None:
    if script == "exec sleep 60":
        monkeypatch.setattr(driver, "_PATIENCE_S", 0.1)
    nvidia_smi.install(monkeypatch, tmp_path)
    text = "" if script is None else f"#!/bin/sh\n{script}\n"
    (tmp_path / "nvidia-smi").write_text(text, encoding="utf-8")
    answer = ask_driver()
    assert answer is not None
    assert (answer.gpus, str(answer.problem)[: len(problem)]) == ((), problem)
