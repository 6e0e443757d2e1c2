"""Whether a device is present, its memory, and the key that names its baselines."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import subprocess
import warnings
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from llama_perf.devices import driver, processor
from llama_perf.errors import NotRunnable, UserError


def check_device(device: str) -> torch.device:
    """The torch device of a row's `device`; raises NotRunnable where there is none."""
    if device == "cuda" and not card_is_here():
        raise NotRunnable(no_card())
    return torch.device(device)


def card_is_here() -> bool:
    """Whether torch can use a card."""
    with warnings.catch_warnings():
        # It warns of a driver too old; what to do stands in the reason of each row.
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def default_device() -> str:
    """The device of this machine."""
    return "cuda" if card_is_here() else "cpu"


def unasked_device() -> str:
    """The device whose rows run where none were asked for.

    Raises UserError where a card is here that torch cannot use: figures of the
    processor would not be what was meant. A card that the user hid is none.
    """
    if card_is_here():
        return "cuda"
    if not driver.hidden() and (reason := unseen_card()) is not None:
        raise UserError(f"{reason}; --set cpu runs the processor's rows")
    return "cpu"


def no_card() -> str:
    """Why rows of a card cannot run here, where `card_is_here` says so."""
    found = driver.ask_driver()
    if driver.hidden():
        reason = f" can be used: CUDA_VISIBLE_DEVICES={driver.visible()!r} hides it"
    elif (unseen := unseen_card()) is not None:
        reason = f" can be used: {unseen}"
    elif found is not None and found.problem is not None:
        reason = f": {found.problem}"
    else:
        built = torch.version.cuda
        reason = "" if built else f"; torch {torch.__version__} is a CPU build"
    return f"no CUDA device on this machine{reason}"


def unseen_card() -> str | None:
    """Why torch sees none of the cards that `nvidia-smi` lists; None without one."""
    found = driver.ask_driver()
    if found is None or not found.cards:
        return None
    version, built_for = torch.__version__, torch.version.cuda
    return driver.why_unseen(found, torch=version, built_for=built_for)


def run_device(devices: Collection[str]) -> torch.device:
    """The device that a run with rows of `devices` is about.

    A CUDA row is refused on its own where there is no card; the run's environment is
    then that of the machine it is on.
    """
    return torch.device("cuda" if "cuda" in devices and card_is_here() else "cpu")


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What times depend on: the device, its driver and the libraries, by field."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else processor.name()
    return {
        "device_key": cuda_key(device)
        if cuda
        else f"cpu-{_slug(name)}-{processor.cores()}c",
        "device_name": name,
        "device_memory_bytes": memory_bytes(device),
        "threads": torch.get_num_threads(),
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchao": package_version("torchao"),
        "triton": package_version("triton"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "device_uuid": _uuid(device) if cuda else None,
        "cpu_features": None if cuda else processor.features(),
    }


def release_memory(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_bytes(device: torch.device) -> int:
    """All memory of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def free_memory_bytes(device: torch.device) -> int:
    """Memory of the device that a row could take now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def package_version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cuda_key(device: torch.device) -> str:
    """The device key of a card."""
    # The name alone can hide different parts: a MIG slice, or the same name with
    # fewer multiprocessors or less memory.
    properties = torch.cuda.get_device_properties(device)
    memory = round(properties.total_memory / 2**30)
    name = _slug(properties.name)
    return f"{name}-{properties.multi_processor_count}sm-{memory}gib"


def _uuid(device: torch.device) -> str | None:
    # Cards of one model differ by as much as a regression.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)


def _slug(name: str) -> str:
    text = re.sub(r"\((?:r|tm|c)\)", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def _driver() -> str | None:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None
