"""What this machine's processor is: its name, and the features that code depends on.

Knows no rows and no kernels. arm64 has other features than x86-64, and is asked for
none that it does not know.
"""

import hashlib
import math
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
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
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows."""
    return "microsoft" in system_text("/proc/version").lower()


def cores() -> int:
    """How many cores this process may use: a container's quota counts as cores.

    Of a quota of 2.5 cores 2 count: with more threads than the quota has time for, all
    are stopped in each period.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, int(min(count, cpu_quota())))


def use_own_cores() -> None:
    """Have torch take no more threads than there are cores for this process."""
    if torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


@contextmanager
def main_threads_on_one_core(processes: Collection[int]) -> Iterator[None]:
    """Bind the main threads of these processes, by their ids, to the same core.

    Other threads that they have started already keep the cores that they may use.
    Nothing is bound where the processes share no core, or one of them has ended.
    """
    before: dict[int, set[int]] = {}
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            before = {process: os.sched_getaffinity(process) for process in processes}
    if before and (shared := set.intersection(*before.values())):
        # Systems tend to handle their interrupts on the first core.
        _bind({process: {max(shared)} for process in before})
    try:
        yield
    finally:
        _bind(before)


def _bind(cores: Mapping[int, set[int]]) -> None:
    """Let the main thread of each process use these cores; skip one that has ended."""
    for process, own in cores.items():
        with suppress(OSError):
            os.sched_setaffinity(process, own)


def cpu_quota(root: Path = Path("/")) -> float:
    """The cores' worth of time that control groups leave this process; else infinite.

    A group has at most what those above it have. Version 2 has quota and period in one
    file, version 1 in two. A container may see its own group as the root of all.
    """
    least = math.inf
    for line in system_text(str(root / "proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" not in controllers.split(",") and controllers:
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == top.parent:
                break
            text = system_text(str(folder / "cpu.max"))
            parts = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            text = text or " ".join(system_text(str(folder / part)) for part in parts)
            # "max" and -1 mean that there is none.
            if match := re.fullmatch(r"\s*(\d+)\s+(\d+)\s*", text):
                least = min(least, int(match[1]) / int(match[2]))
    return least


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
            "lscpu",
            encoding="utf-8",
            errors="replace",
            timeout=20,
            env=english,
            stderr=subprocess.DEVNULL,
        )
    return ""


def is_arm64() -> bool:
    """Whether the processor is of that architecture."""
    return platform.machine() in {"aarch64", "arm64"}


@cache
def instructions() -> str:
    """A hash of the instructions that it has: code built with -march=native uses all.

    Empty where the system lists none.
    """
    text = system_text("/proc/cpuinfo")
    listed = _value("flags", text) or _value("Features", text) or ""
    return listed and hashlib.sha256(listed.encode()).hexdigest()[:12]


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
