"""What this machine's processor is: its name, and the features that code depends on.

Knows no rows and no kernels. arm64 has other features than x86-64, and is asked for
none that it does not know.
"""

import os
import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

# What torch, oneDNN and this project choose code by, of what `get_capabilities` lists.
_FEATURES = {
    "avx512_vnni": "VNNI",
    "amx_int8": "AMX int8",
    "avx512_bf16": "bf16",
    "dot": "dot products",
    "i8mm": "i8mm",
    "bf16": "bf16",
}


def system_text(path: str) -> str:
    """What the system says in a file; "" where it has none."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8")
    return ""


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows."""
    return "microsoft" in system_text("/proc/version").lower()


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def name() -> str:
    """The processor's name, such as "AMD EPYC 7B12"; the architecture's if unknown."""
    # On arm64 /proc/cpuinfo has numbers in place of a name, and lscpu translates them.
    known = _value("model name", system_text("/proc/cpuinfo"))
    known = known or _value("Model name", _lscpu())
    return known or platform.processor() or platform.machine()


def _value(field: str, text: str) -> str | None:
    match = re.search(rf"^[ \t]*{field}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _lscpu() -> str:
    english = {**os.environ, "LC_ALL": "C"}
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            "lscpu", text=True, timeout=20, env=english, stderr=subprocess.DEVNULL
        )
    return ""


def is_arm64() -> bool:
    """Whether the processor is of that architecture."""
    return platform.machine() in {"aarch64", "arm64"}


def features() -> str:
    """What code is chosen by: "torch uses AVX512; has VNNI; int8 products are exact".

    First the instructions of torch's own kernels, which ATEN_CPU_CAPABILITY lowers.
    Then those of the processor that matter here. Last whether torch's int8 products
    are exact: they saturate where ONEDNN_MAX_CPU_ISA takes VNNI away.
    """
    known = torch.cpu.get_capabilities()
    seen = [text for key, text in _FEATURES.items() if known.get(key)]
    # A feature may have a name on either architecture.
    listed = ", ".join(dict.fromkeys(seen)) or "no int8 instructions"
    exact = "are exact" if int8_products_are_exact() else "saturate"
    used = torch.backends.cpu.get_cpu_capability()
    return f"torch uses {used}; has {listed}; int8 products {exact}"


@cache
def int8_products_are_exact() -> bool:
    """Whether torch multiplies int8 matrices of the largest values exactly.

    oneDNN without VNNI adds pairs of products in 16 bits, where they saturate. A
    product is tried, since what oneDNN may use is nowhere to be read.
    """
    largest = torch.full((8, 64), 127, dtype=torch.int8)
    product = torch._int_mm(largest, largest.t())
    return bool((product == 64 * 127 * 127).all())
