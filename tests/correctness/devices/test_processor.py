"""The processor's name and the features that code is chosen by, on any architecture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama_perf.devices import processor
from tests.correctness.support.processes import HANG_S

ROOT = Path(__file__).resolve().parents[3]
X86 = {"architecture": "x86_64", "avx2": True, "avx512_f": True}
ARM = {"architecture": "arm64", "neon": True, "sve": False, "sve_max_length": 0}
VNNI = {**X86, "avx512_vnni": True}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What torch says of the processor, for a test to fill."""
    made: dict[str, object] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: made)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    return made


@pytest.mark.parametrize(
    ("capabilities", "exact", "told"),
    [
        ({**VNNI, "amx_int8": True}, True, "VNNI, AMX int8"),
        (VNNI, False, "VNNI"),
        (X86, False, "no int8 instructions"),
        ({**ARM, "dot": True, "bf16": True}, True, "dot products, bf16"),
        ({**X86, "avx512_bf16": True, "bf16": True}, True, "bf16"),
        ({}, True, "no int8 instructions"),
    ],
)
def test_features_are_those_that_code_is_chosen_by(
    known: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, object],
    exact: bool,
    told: str,
) -> None:
    known.update(capabilities)
    monkeypatch.setattr(processor, "int8_products_are_exact", lambda: exact)
    found = "are exact" if exact else "saturate"
    assert processor.features() == f"torch uses AVX2; has {told}; int8 products {found}"


@pytest.mark.parametrize(
    ("capabilities", "exact", "onednn", "fast"),
    [
        (VNNI, True, True, True),
        # ONEDNN_MAX_CPU_ISA=AVX2.
        (VNNI, False, True, False),
        (VNNI, True, False, False),
        (X86, True, True, False),
        # arm64, where torch's products are exact, and how fast is not known.
        (ARM, True, True, False),
    ],
)
def test_int8_products_are_fast_with_vnni_that_onednn_uses(
    known: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, object],
    exact: bool,
    onednn: bool,
    fast: bool,
) -> None:
    known.update(capabilities)
    monkeypatch.setattr(processor, "int8_products_are_exact", lambda: exact)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert processor.has_fast_int8_products() is fast


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


def test_what_onednn_may_use_is_heeded() -> None:
    """ONEDNN_MAX_CPU_ISA=AVX2 makes any processor one without VNNI."""
    code = (
        "from llama_perf.devices.processor import has_fast_int8_products, features\n"
        "print(has_fast_int8_products(), features())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )
    assert done.stdout.startswith("False torch uses DEFAULT; ")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"ATEN_CPU_CAPABILITY": "avx512"}, None),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, "AVX512_CORE_BF16"),
        ({"ATEN_CPU_CAPABILITY": "default"}, "AVX512_CORE_BF16"),
        ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "AVX2"),
    ],
    ids=str,
)
def test_onednn_does_without_amx_where_torch_is_lowered(
    given: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    code = "import os, llama_perf; print(os.environ.get('ONEDNN_MAX_CPU_ISA'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )
    assert done.stdout == f"{wanted}\n"


def test_the_name_is_read_where_the_architecture_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"text": "processor\t: 0\nmodel name\t: AMD EPYC 7B12\n"}
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: files["text"])
    assert processor.name() == "AMD EPYC 7B12"
    # arm64 has numbers there, and lscpu the name.
    files["text"] = "processor\t: 0\nCPU implementer\t: 0x41\nmodel name\t: \n"
    shown = "Architecture:  aarch64\n  Model name:     Neoverse-N1\n    Stepping: r3\n"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=shown)
    )
    assert processor.name() == "Neoverse-N1"

    def absent(*_: object, **__: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert processor.name() == "aarch64"
