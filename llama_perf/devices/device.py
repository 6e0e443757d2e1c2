"""The kinds of devices, and which of them this machine has."""

import platform
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from typing import Any

import torch

from llama_perf.devices.base import Device
from llama_perf.devices.cpu import CpuDevice
from llama_perf.devices.cuda import CudaDevice
from llama_perf.errors import NotRunnable, UserError

KINDS: dict[str, type[Device]] = {kind.kind: kind for kind in (CudaDevice, CpuDevice)}
"""By the name in a row; where none is asked for, the first that is present is used."""


def device_of(device: str | torch.device) -> Device:
    """The device of a row's `device`, or of a tensor; whether it is here or not."""
    device = torch.device(device)
    assert device.type in KINDS, f"no class for {device}"
    return KINDS[device.type](device)


def check_device(device: str) -> torch.device:
    """The torch device of a row's `device`; raises NotRunnable where there is none."""
    asked = device_of(device)
    if (reason := asked.why_absent()) is not None:
        raise NotRunnable(reason)
    return asked.torch_device


def unasked_device() -> str:
    """The device whose rows run where none were asked for.

    Raises UserError where a better one is here that torch cannot use: nobody means to
    measure the processor of such a machine.
    """
    chosen = run_device(KINDS).type
    for kind in takewhile(chosen.__ne__, KINDS):
        if (reason := device_of(kind).why_unusable()) is not None:
            raise UserError(f"{reason}; --set {chosen} runs the processor's rows")
    return chosen


def run_device(devices: Collection[str]) -> torch.device:
    """The device that a run with rows of `devices` is about; of KINDS: the machine's.

    Each row of a device that is not here is refused with its own reason; the run's
    environment is then that of the machine it is on.
    """
    wanted = (kind for kind in KINDS if kind in devices)
    present = (kind for kind in wanted if device_of(kind).why_absent() is None)
    return torch.device(next(present, "cpu"))


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What times depend on: the device, its driver and the libraries, by field."""
    used = device_of(device)
    return {
        "device_key": used.key,
        "device_name": used.name,
        "device_memory_bytes": used.total_memory_bytes(),
        "threads": torch.get_num_threads(),
        "driver": used.driver,
        "cuda": torch.version.cuda,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchao": package_version("torchao"),
        "triton": package_version("triton"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "device_uuid": used.uuid,
        "cpu_features": used.features,
    }


def package_version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
