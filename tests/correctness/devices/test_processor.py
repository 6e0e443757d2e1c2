"""The processor's name and the features that code is chosen by, on any architecture."""

from __future__ import annotations

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
NO_INT8 = "no int8 instructions"
FIELDS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


@pytest.mark.parametrize(
    ("capabilities", "exact", "onednn", "told", "fast"),
    [
        ({**VNNI, "amx_int8": True}, True, True, "VNNI, AMX int8", True),
        # ONEDNN_MAX_CPU_ISA=AVX2.
        (VNNI, False, True, "VNNI", False),
        (VNNI, True, False, "VNNI", False),
        (X86, False, True, NO_INT8, False),
        (X86, True, True, NO_INT8, False),
        ({**X86, "avx512_bf16": True, "bf16": True}, True, True, "bf16", False),
        # arm64, where torch's products are exact, and how fast is not known.
        (ARM, True, True, NO_INT8, False),
        ({**ARM, "dot": True, "bf16": True}, True, True, "dot products, bf16", False),
        ({}, True, True, NO_INT8, False),
    ],
)
def test_features_are_those_that_code_is_chosen_by(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, object],
    exact: bool,
    onednn: bool,
    told: str,
    fast: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(processor, "int8_products_are_exact", lambda: exact)
    found = "are exact" if exact else "saturate"
    assert processor.features() == f"torch uses AVX2; has {told}; int8 products {found}"
    # Fast are exact products with VNNI that oneDNN uses.
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


FAST = "processor.has_fast_int8_products(), processor.features()"
ISA = "os.environ.get('ONEDNN_MAX_CPU_ISA')"


@pytest.mark.parametrize(
    ("torch_uses", "onednn_uses", "shown", "begin"),
    [
        # The latter makes any processor one without VNNI.
        ("default", "AVX2", FAST, "False torch uses DEFAULT; "),
        # oneDNN does without AMX where torch is lowered.
        (None, None, ISA, "None\n"),
        ("avx512", None, ISA, "None\n"),
        ("avx2", None, ISA, "AVX512_CORE_BF16\n"),
        ("default", None, ISA, "AVX512_CORE_BF16\n"),
        ("avx2", "AVX2", ISA, "AVX2\n"),
    ],
)
def test_what_torch_and_onednn_may_use_is_heeded(
    torch_uses: str | None,
    onednn_uses: str | None,
    shown: str,
    begin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in zip(FIELDS, (torch_uses, onednn_uses), strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    code = f"import os, llama_perf.devices.processor as processor; print({shown})"
    found = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, text=True, timeout=HANG_S
    )
    assert found.startswith(begin)


def test_the_name_is_read_where_the_architecture_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "processor\t: 0\nmodel name\t: AMD EPYC 7B12\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert processor.name() == "AMD EPYC 7B12"
    # arm64 has numbers there, and lscpu the name.
    text = "processor\t: 0\nCPU implementer\t: 0x41\nmodel name\t: \n"
    shown = "Architecture:  aarch64\n  Model name:     Neoverse-N1\n    Stepping: r3\n"
    done = SimpleNamespace(stdout=shown)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert processor.name() == "Neoverse-N1"

    def absent(*_: object, **__: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert processor.name() == "aarch64"


def test_a_linux_inside_windows_is_known(tmp_path: Path) -> None:
    version = tmp_path / "version"
    assert not processor.is_wsl(version)
    version.write_text("Linux version 5.15.1-microsoft-standard-WSL2", encoding="utf-8")
    assert processor.is_wsl(version)
    version.write_text("Linux version 6.1.0 (debian)", encoding="utf-8")
    assert not processor.is_wsl(version)
