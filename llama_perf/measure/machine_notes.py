"""What a reader of this machine's figures should know of it, a line each."""

from __future__ import annotations

import torch

from llama_perf.devices.device import device_of
from llama_perf.devices.driver import is_wsl
from llama_perf.measure.gpu_state import GpuWatch


def machine_notes(device: torch.device) -> list[str]:
    """Which of several GPUs it is, what cannot be read of it, a silent driver, WSL."""
    lines = device_of(device).notes()
    if (problem := GpuWatch(device).problem) is not None:
        lines.append(f"state of the GPU: {problem}")
    if is_wsl():
        lines.append(
            "WSL: the driver is Windows', whose programs may use the GPU and the"
            " processor unseen; it may not report power and clocks, and without saying"
            " so it moves what does not fit the GPU into the machine's slower memory"
        )
    return lines
