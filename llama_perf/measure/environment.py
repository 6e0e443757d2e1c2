"""The environment of a measurement: device, libraries and commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from llama_perf.devices.device import fingerprint, package_version
from llama_perf.results.environment import Environment

_CHECKOUT = Path(__file__).resolve().parents[2]


def collect(device: torch.device) -> Environment:
    """The environment of `device` and of this process."""
    return Environment(
        **fingerprint(device),
        llama_perf=package_version("llama-perf"),
        commit=_commit(),
    )


def _commit() -> str | None:
    """The checkout's commit, short; None without a checkout or git."""
    if not (_CHECKOUT / "pyproject.toml").is_file():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            cwd=_CHECKOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
