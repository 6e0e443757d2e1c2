"""Every scheme that is built, by name: a new one is tested without being listed."""

from collections.abc import Sequence

import torch
from torchao.core.config import AOBaseConfig

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


def cpu_config(name: str, kernels: str = "native") -> AOBaseConfig:
    """The config of a scheme for torchao's `quantize_`, for float32 on a CPU."""
    cpu = torch.device("cpu")
    scheme = Scheme.parse(name)
    return config_for(scheme, kernels=kernels, device=cpu, dtype=torch.float32)


def _runs_on_cpu(name: str, kernels: str) -> bool:
    try:
        return bool(cpu_config(name, kernels))
    except NotRunnable:
        return False
