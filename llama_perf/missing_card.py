"""Why torch sees no card on a machine that may have one.

Asks the driver's own program, `nvidia-smi`, where torch has no answer. Knows no rows.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache

import torch

from llama_perf.errors import NotRunnable

_REMEDY = "`make bench TORCH=...` installs another one (docs/gpu-runners.md)"


@cache
def listed_card() -> tuple[str, str] | None:
    """Name and driver's version of the first card that nvidia-smi lists, or None."""
    fields = "--query-gpu=name,driver_version"
    try:
        done = subprocess.run(
            ["nvidia-smi", fields, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    name, comma, driver = done.stdout.partition("\n")[0].rpartition(", ")
    return (name, driver) if comma else None


def missing_card() -> str:
    """Why there is no CUDA device here, in one line."""
    built = torch.version.cuda
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return (
            f"no CUDA device on this machine: CUDA_VISIBLE_DEVICES is {hidden!r}, and"
            f" torch sees none{'' if built else '; it is a CPU build'}"
        )
    if (card := listed_card()) is None:
        told = "" if built else f"; torch {torch.__version__} is a CPU build"
        return f"no CUDA device on this machine{told}"
    name, driver = card
    if built is None:
        return (
            f"no CUDA device for torch: nvidia-smi lists {name}, and torch"
            f" {torch.__version__} is a CPU build; {_REMEDY}"
        )
    return (
        f"no CUDA device for torch: nvidia-smi lists {name} with driver {driver}, and"
        f" torch {torch.__version__} is built for CUDA {built}, which needs a newer"
        f" driver; {_REMEDY}"
    )


def check_no_card_is_missed() -> None:
    """Raise NotRunnable where a card is listed that torch does not see.

    For a run whose rows nobody chose: those of a CPU would pass for the card's. A card
    that `CUDA_VISIBLE_DEVICES` hides is missed by nobody.
    """
    if torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    if listed_card() is not None:
        raise NotRunnable(f"{missing_card()}; --set cpu runs the rows of a CPU")
