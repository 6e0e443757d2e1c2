"""The machine's fingerprint, and the key that names its baselines."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama_perf.devices import device, processor
from llama_perf.measure.environment import collect
from llama_perf.results.environment import Environment
from llama_perf.rows.spec import DEVICES
from tests.correctness.support import nvidia_smi

ROOT = Path(__file__).resolve().parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONLY_ON_CUDA = {"driver", "cuda", "triton", "device_uuid"}
XEON = "Intel(R) Xeon(R) CPU @ 2.80GHz"


def test_every_field_of_this_machine_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    found = collect(CPU)
    for field in fields(Environment):
        if field.name not in ONLY_ON_CUDA | {"commit"}:
            assert getattr(found, field.name), field.name
    assert found.driver is None
    assert found.torch == torch.__version__
    assert found.cuda == torch.version.cuda
    assert found.python == platform.python_version()
    assert found.threads == torch.get_num_threads()
    # Between a tenth of a gigabyte and ten terabytes: bytes, not another unit.
    assert 1e8 < found.device_memory_bytes < 1e13
    git = ["git", "rev-parse", "HEAD"]
    asked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    assert found.commit == (asked.stdout[:12] or None)
    monkeypatch.setenv("PATH", "")
    again = collect(CPU)
    assert again.commit is None, "git is not there"
    assert again.device_key == found.device_key


@pytest.mark.parametrize(
    ("name", "cores", "key"),
    [
        (XEON, 2, "cpu-intel-xeon-cpu-2.80ghz-2c"),
        (XEON, 4, "cpu-intel-xeon-cpu-2.80ghz-4c"),
        # None leaves the folder of baselines.
        ("../../etc", 2, "cpu-..-..-etc-2c"),
        ("A/B\\C", 2, "cpu-a-b-c-2c"),
        ("  Spaced  Out ", 2, "cpu-spaced-out-2c"),
        ("AMD EPYC™ 7B12\n", 2, "cpu-amd-epyc-7b12-2c"),
        ("-", 2, "cpu--2c"),
        ("Ünïx", 2, "cpu-n-x-2c"),
    ],
)
def test_a_key_has_the_name_without_marks_and_the_cores(
    monkeypatch: pytest.MonkeyPatch, name: str, cores: int, key: str
) -> None:
    monkeypatch.setattr(processor, "name", lambda: name)
    monkeypatch.setattr(processor, "cores", lambda: cores)
    found = collect(CPU)
    assert (found.device_name, found.device_key) == (name, key)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of which a test changes the properties, and its NVML."""
    made = SimpleNamespace(
        name="NVIDIA A100-SXM4-40GB", multi_processor_count=108, total_memory=40 * 2**30
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: made)
    made.nvml = SimpleNamespace(
        NVMLError=LookupError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "570.1",
    )
    monkeypatch.setitem(sys.modules, "pynvml", made.nvml)
    return made


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, "nvidia-a100-sxm4-40gb-108sm-40gib"),
        ({"name": "NVIDIA H100"}, "nvidia-h100-108sm-40gib"),
        # A slice, and another size, of the same name.
        ({"multi_processor_count": 42}, "nvidia-a100-sxm4-40gb-42sm-40gib"),
        ({"total_memory": 20 * 2**30}, "nvidia-a100-sxm4-40gb-108sm-20gib"),
        # The same with the memory that a driver takes.
        ({"total_memory": 40 * 2**30 - 2**28}, "nvidia-a100-sxm4-40gb-108sm-40gib"),
    ],
    ids=str,
)
def test_a_gpu_is_named_by_its_parts(
    gpu: SimpleNamespace, change: dict[str, object], key: str
) -> None:
    vars(gpu).update(change)
    found = collect(CUDA)
    assert (found.device_key, found.driver) == (key, "570.1")
    assert found.device_name == gpu.name
    assert found.device_memory_bytes == gpu.total_memory


def test_nvidia_smi_tells_the_driver_where_nvml_does_not(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(error: type[Exception]) -> None:
        raise error("no answer")

    monkeypatch.setattr(gpu.nvml, "nvmlInit", lambda: fail(ValueError))
    with pytest.raises(ValueError, match="no answer"):
        collect(CUDA)
    monkeypatch.setattr(gpu.nvml, "nvmlInit", lambda: fail(LookupError))
    monkeypatch.setattr("llama_perf.devices.driver._WSL", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect(CUDA).driver is None
    nvidia_smi.install(monkeypatch, tmp_path)
    assert collect(CUDA).driver == "550.54.15"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert collect(CUDA).driver == "550.54.15"


def test_every_device_of_a_row_has_a_class() -> None:
    assert set(device.KINDS) == set(DEVICES)
    assert all(name == kind.kind for name, kind in device.KINDS.items())


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert device.package_version("no-such-package-here") is None
    # Of torch the wheels of PyPI leave out what +cpu or +cu130 says.
    assert device.package_version("pytest") == pytest.__version__
