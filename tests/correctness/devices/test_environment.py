"""The machine's fingerprint, and the key that names its baselines."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama_perf.devices import device
from llama_perf.devices import processor as named
from llama_perf.measure.environment import collect
from llama_perf.results.environment import Environment
from llama_perf.rows.spec import DEVICES

ROOT = Path(__file__).resolve().parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONLY_ON_CUDA = {"driver", "cuda", "triton", "device_uuid"}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CPU of which a test changes the name and the cores."""
    made = SimpleNamespace(name="Intel(R) Xeon(R) CPU @ 2.80GHz", cores=2)
    monkeypatch.setattr(named, "name", lambda: made.name)
    monkeypatch.setattr(named, "cores", lambda: made.cores)
    return made


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card of which a test changes the properties."""
    made = SimpleNamespace(
        name="NVIDIA A100-SXM4-40GB", multi_processor_count=108, total_memory=40 * 2**30
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: made)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: made.name)
    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "570.1"
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return made


def test_every_field_of_this_machine_is_filled() -> None:
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


def test_the_commit_is_the_checkouts_and_not_known_without_git(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = subprocess.run(
        "git rev-parse HEAD", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert collect(CPU).commit == (asked.stdout[:12] or None)
    monkeypatch.setenv("PATH", "")
    assert collect(CPU).commit is None


def test_the_key_is_stable_and_a_safe_name_of_a_folder() -> None:
    keys = {collect(CPU).device_key for _ in range(2)}
    assert len(keys) == 1
    assert re.fullmatch(r"cpu-[a-z0-9][a-z0-9.-]*-\d+c", keys.pop())


def test_a_key_says_the_name_without_marks_and_the_cores(
    processor: SimpleNamespace,
) -> None:
    assert collect(CPU).device_key == "cpu-intel-xeon-cpu-2.80ghz-2c"
    assert collect(CPU).device_name == processor.name


@pytest.mark.parametrize(
    "name", ["../../etc", "A/B\\C", "  Spaced  Out ", "AMD EPYC™ 7B12\n", "-", "Ünïx"]
)
def test_no_name_of_a_processor_leaves_the_folder(
    processor: SimpleNamespace, name: str
) -> None:
    processor.name = name
    key = collect(CPU).device_key
    assert re.fullmatch(r"cpu-[a-z0-9.-]*-2c", key)
    assert Path("baselines", key).resolve().parent == Path("baselines").resolve()


def test_other_cores_and_other_processors_have_other_keys(
    processor: SimpleNamespace,
) -> None:
    keys = {collect(CPU).device_key}
    processor.cores = 4
    keys.add(collect(CPU).device_key)
    processor.name = "AMD EPYC 7B12"
    keys.add(collect(CPU).device_key)
    assert len(keys) == 3


def test_a_card_is_named_by_its_parts(card: SimpleNamespace) -> None:
    found = collect(CUDA)
    assert found.device_key == "nvidia-a100-sxm4-40gb-108sm-40gib"
    assert found.device_name == card.name
    assert found.device_memory_bytes == card.total_memory
    assert found.driver == "570.1"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("name", "NVIDIA H100"),
        ("multi_processor_count", 42),
        ("total_memory", 20 * 2**30),
    ],
)
def test_cards_that_share_a_name_are_told_apart(
    card: SimpleNamespace, part: str, value: object
) -> None:
    before = collect(CUDA).device_key
    setattr(card, part, value)
    assert collect(CUDA).device_key != before


def test_a_card_is_the_same_with_the_memory_a_driver_takes(
    card: SimpleNamespace,
) -> None:
    before = collect(CUDA).device_key
    card.total_memory -= 200 * 2**20
    assert collect(CUDA).device_key == before


def test_every_device_of_a_row_has_a_class() -> None:
    assert set(device.KINDS) == set(DEVICES)
    assert all(name == kind.kind for name, kind in device.KINDS.items())


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert device.package_version("no-such-package-here") is None
    # Of torch the wheels of PyPI leave out what +cpu or +cu130 says.
    assert device.package_version("pytest") == pytest.__version__
