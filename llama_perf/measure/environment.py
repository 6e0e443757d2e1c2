"""The environment of a measurement, and what a reader of its figures should know."""

import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from llama_perf.devices import processor
from llama_perf.devices.device import device_of, fingerprint, package_version
from llama_perf.measure.gpu_state import GpuWatch
from llama_perf.results.run import Environment

_CHECKOUT = Path(__file__).resolve().parents[2]


def collect(device: torch.device) -> Environment:
    """The environment of `device` and of this process."""
    return Environment(
        **fingerprint(device),
        llama_perf=package_version("llama-perf"),
        commit=_commit() if (_CHECKOUT / "pyproject.toml").is_file() else None,
    )


def _commit() -> str | None:
    """The checkout's commit, short; None without git."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(
            command, text=True, timeout=20, cwd=_CHECKOUT, stderr=subprocess.DEVNULL
        )
        return commit.strip() or None
    return None


def machine_notes(device: torch.device) -> list[str]:
    """Which of several GPUs it is, what cannot be read of it, a silent driver, WSL."""
    lines = device_of(device).notes()
    if (problem := GpuWatch(device).problem) is not None:
        lines.append(f"state of the GPU: {problem}")
    if processor.is_wsl():
        lines.append(
            "WSL: the driver is Windows', whose programs may use the GPU and the"
            " processor unseen; it may not report power and clocks, and without saying"
            " so it moves what does not fit the GPU into the machine's slower memory"
        )
    return lines
