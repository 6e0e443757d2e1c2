"""An `nvidia-smi` of one's own on PATH: what it lists and what it says."""

import os
import shlex
from pathlib import Path

import pytest

GPU = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-7c2a0f6e-1111-2222-3333-444455556666)"
SLICE = "  MIG 1g.10gb     Device  0: (UUID: MIG-9d1b-5c2e)"
SHOWN = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: {} |"


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    cuda: str = "12.4",
    gpus: str = GPU,
    code: int = 0,
    says: str | None = None,
) -> None:
    """Have `nvidia-smi` list `gpus` and a driver for `cuda`, or fail with `says`."""
    listed, shown = map(shlex.quote, (says or gpus, says or SHOWN.format(cuda)))
    folder.mkdir(exist_ok=True)
    script = folder / "nvidia-smi"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -L ]; then echo {listed}; else echo {shown}; fi\n'
        f"exit {code}\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
