"""The machine's fingerprint, the key that names its baselines, and its processor."""

import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from llama_perf.devices import processor
from llama_perf.devices.device import KINDS, package_version
from llama_perf.measure.environment import collect
from llama_perf.results.run import Environment
from llama_perf.rows.choices import DEVICES
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support import nvidia_smi
from tests.correctness.support.processes import HANG_S

ROOT = Path(__file__).resolve().parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONLY_ON_CUDA = {"driver", "cuda", "triton", "device_uuid"}
GB = 2**30
XEON = "Intel(R) Xeon(R) CPU @ 2.80GHz"
X86 = {"architecture": "x86_64", "avx2": True, "avx512_f": True}
ARM = {"architecture": "arm64", "neon": True, "sve": False, "sve_max_length": 0}
VNNI = {**X86, "avx512_vnni": True}
NO_INT8 = "no int8 instructions"
FIELDS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def test_every_field_of_this_machine_is_filled(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = collect(device)
    key, unknown = r"cpu-[a-z0-9.-]+-\d+c", ONLY_ON_CUDA
    if device.type == "cuda":
        key, unknown = r"[a-z0-9.-]+-\d+sm-\d+gib", {"cpu_features"}
        assert environment.device_name == torch.cuda.get_device_name(device)
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", environment.driver or "unknown")
    for field in fields(Environment):
        # gemlite is for GPUs alone; the last two are of runs on several.
        if field.name not in unknown | {"commit", "gemlite", "cards", "links"}:
            assert getattr(environment, field.name), field.name
    assert re.fullmatch(key, environment.device_key)
    assert (environment.driver is None) == (device.type == "cpu")
    assert environment.torch == torch.__version__
    assert environment.cuda == torch.version.cuda
    assert environment.python == platform.python_version()
    assert environment.threads == torch.get_num_threads()
    # Between a tenth of a gigabyte and ten terabytes: bytes, not another unit.
    assert 1e8 < environment.device_memory_bytes < 1e13
    git = ["git", "rev-parse", "HEAD"]
    asked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    assert environment.commit == (asked.stdout[:12] or None)
    monkeypatch.setenv("PATH", "")
    again = collect(device)
    assert again.commit is None, "git is not there"
    assert again.device_key == environment.device_key


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/"}, math.inf),
        ({"proc/self/cgroup": "0::/", "cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/", "cpu.max": "150000 100000\n"}, 1.5),
        # The groups above have a say too; a container may not see its own.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "a/b/cpu.max": "300000 100000\n",
                "a/cpu.max": "200000 100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/else", "cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "3:memory:/\n2:cpu,cpuacct:/a\n1:cpuset:/\n",
                "cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "memory/cpu.max": "100000 100000\n",
            },
            0.5,
        ),
    ],
)
def test_a_quota_is_that_of_the_groups_of_this_process(
    files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / (name if "proc" in name else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert processor.cpu_quota(tmp_path) == quota


def test_a_quota_counts_as_cores_and_threads_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    all_cores = processor.cores()
    set_to = Mock()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", set_to)
    for quota, cores in ((math.inf, all_cores), (0.5, 1), (1.9, 1), (1e6, all_cores)):
        monkeypatch.setattr(processor, "cpu_quota", lambda said=quota: said)
        assert processor.cores() == cores
        assert collect(CPU).device_key.endswith(f"-{cores}c")
        Session(["cpu"], options=RunRequest())
        set_to.assert_called_with(cores)
    # What a user asks for stays, where it is no more.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    set_to.reset_mock()
    processor.use_own_cores()
    assert not set_to.called


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
    environment = collect(CPU)
    assert (environment.device_name, environment.device_key) == (name, key)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of which a test changes the properties, and its NVML."""
    made = SimpleNamespace(
        name="NVIDIA A100-SXM4-40GB", multi_processor_count=108, total_memory=40 * GB
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: made)
    made.nvml = SimpleNamespace(nvmlInit=lambda: None, NVMLError=LookupError)
    made.nvml.nvmlSystemGetDriverVersion = lambda: "570.1"
    monkeypatch.setitem(sys.modules, "pynvml", made.nvml)
    return made


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, "nvidia-a100-sxm4-40gb-108sm-40gib"),
        ({"name": "NVIDIA H100"}, "nvidia-h100-108sm-40gib"),
        # A slice, and another size, of the same name.
        ({"multi_processor_count": 42}, "nvidia-a100-sxm4-40gb-42sm-40gib"),
        ({"total_memory": 20 * GB}, "nvidia-a100-sxm4-40gb-108sm-20gib"),
        # The same with the memory that a driver takes.
        ({"total_memory": 40 * GB - 2**28}, "nvidia-a100-sxm4-40gb-108sm-40gib"),
    ],
    ids=str,
)
def test_a_gpu_is_named_by_its_parts(
    gpu: SimpleNamespace, change: dict[str, object], key: str
) -> None:
    vars(gpu).update(change)
    environment = collect(CUDA)
    assert (environment.device_key, environment.driver) == (key, "570.1")
    assert environment.device_name == gpu.name
    assert environment.device_memory_bytes == gpu.total_memory


def test_nvidia_smi_tells_the_driver_where_nvml_does_not(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu.nvml.nvmlInit = Mock(side_effect=ValueError("no answer"))
    with pytest.raises(ValueError, match="no answer"):
        collect(CUDA)
    gpu.nvml.nvmlInit = Mock(side_effect=LookupError("no answer"))
    monkeypatch.setattr("llama_perf.devices.driver._WSL", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect(CUDA).driver is None
    nvidia_smi.install(monkeypatch, tmp_path)
    assert collect(CUDA).driver == "550.54.15"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert collect(CUDA).driver == "550.54.15"


def test_devices_of_rows_have_classes_and_packages_versions_where_installed() -> None:
    assert set(KINDS) == set(DEVICES)
    assert all(name == kind.kind for name, kind in KINDS.items())
    assert package_version("no-such-package-here") is None
    # Of torch the wheels of PyPI leave out what +cpu or +cu130 says.
    assert package_version("pytest") == pytest.__version__


@pytest.mark.parametrize(
    ("capabilities", "exact", "instructions"),
    [
        ({**VNNI, "amx_int8": True}, True, "VNNI, AMX int8"),
        # ONEDNN_MAX_CPU_ISA=AVX2.
        (VNNI, False, "VNNI"),
        (X86, False, NO_INT8),
        (X86, True, NO_INT8),
        ({**X86, "avx512_bf16": True, "bf16": True}, True, "bf16"),
        # arm64, where torch's products are exact.
        (ARM, True, NO_INT8),
        ({**ARM, "dot": True, "bf16": True}, True, "dot products, bf16"),
        ({}, True, NO_INT8),
    ],
)
def test_features_are_those_that_code_is_chosen_by(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, object],
    exact: bool,
    instructions: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(processor, "int8_products_are_exact", lambda: exact)
    products = f"int8 products {'are exact' if exact else 'saturate'}"
    assert processor.features() == f"torch uses AVX2; has {instructions}; {products}"


def test_a_product_that_saturates_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = processor.int8_products_are_exact.__wrapped__

    def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.long() @ b.long()).to(torch.int32)

    def in_16_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # As vpmaddubsw adds pairs: of an unsigned and a signed factor.
        pairs = (a.int() + 128).unsqueeze(2) * b.int().unsqueeze(0)
        sums = pairs.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
        total: torch.Tensor = sums.sum(1) - 128 * b.int().sum(0)
        return total.to(torch.int32)

    for product, wanted in ((exact, True), (in_16_bits, False)):
        monkeypatch.setattr(torch, "_int_mm", product)
        assert tried() is wanted


SHOWN = "processor.features()"
ISA = "os.environ.get('ONEDNN_MAX_CPU_ISA')"


@pytest.mark.parametrize(
    ("torch_uses", "onednn_uses", "shown", "begin"),
    [
        # The latter makes any processor one without VNNI.
        ("default", "AVX2", SHOWN, "torch uses DEFAULT; "),
        # oneDNN does without AMX where torch is lowered.
        (None, None, ISA, "None\n"),
        ("avx512", None, ISA, "None\n"),
        ("avx2", None, ISA, "AVX512_CORE_BF16\n"),
        ("default", None, ISA, "AVX512_CORE_BF16\n"),
        ("avx2", "AVX2", ISA, "AVX2\n"),
    ],
)
def test_what_torch_and_onednn_may_use_is_heeded(
    torch_uses: str | None, onednn_uses: str | None, shown: str, begin: str
) -> None:
    limits = dict(zip(FIELDS, (torch_uses, onednn_uses), strict=True))
    others = {name: value for name, value in os.environ.items() if name not in FIELDS}
    env = others | {name: value for name, value in limits.items() if value}
    code = f"import os, llama_perf.devices.processor as processor; print({shown})"
    printed = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, text=True, timeout=HANG_S, env=env
    )
    assert printed.startswith(begin)


def test_the_name_is_read_where_the_architecture_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "processor\t: 0\nmodel name\t: AMD EPYC 7B12\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert processor.name() == "AMD EPYC 7B12"
    # arm64 has numbers there, and lscpu the name.
    text = "processor\t: 0\nCPU implementer\t: 0x41\nmodel name\t: \n"
    shown = "Architecture:  aarch64\n  Model name:     Neoverse-N1\n    Stepping: r3\n"
    done = Mock(return_value=SimpleNamespace(stdout=shown))
    monkeypatch.setattr(subprocess, "run", done)
    assert processor.name() == "Neoverse-N1"
    absent = Mock(side_effect=FileNotFoundError)
    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert processor.name() == "aarch64"


def test_a_linux_inside_windows_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, inside in (("5.15.1-microsoft-standard-WSL2", True), ("6.1.0", False)):
        said = {"/proc/version": f"Linux version {kind}"}
        monkeypatch.setattr(processor, "system_text", said.__getitem__)
        assert processor.is_wsl() is inside
