"""Every scheme that is built, by name: a new one is tested without being listed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llama_perf.errors import NotRunnable
from llama_perf.quantize.registry import config_for
from llama_perf.rows.schemes import AUTOQUANT, FAMILIES, Scheme

_GROUPED = ("int4wo-32", "int4wo-32-hqq", "uintx-4-32", "uintx-2-8")


def schemes_on(
    kernels: str, *, grouped: Sequence[str] = _GROUPED, autoquant: bool = False
) -> list[str]:
    """The schemes on these kernels that run on a CPU.

    `grouped` are those that stand for the families whose names have parameters.
    """
    with_parameters = {Scheme.parse(name).family for name in _GROUPED}
    without = [family for family in FAMILIES if family not in with_parameters]
    return [
        name
        for name in (*without, *grouped)
        if (autoquant or name not in AUTOQUANT) and _runs_on_cpu(name, kernels)
    ]


def _runs_on_cpu(name: str, kernels: str) -> bool:
    try:
        config_for(
            Scheme.parse(name),
            kernels=kernels,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    except NotRunnable:
        return False
    return True
