"""Which scheme is built on which kernels.

One dict, filled by one decorator. A builder turns a parsed scheme into the torchao
config that `quantize_` takes; importing its file registers it. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

import torch
from torchao.core.config import AOBaseConfig

from llama_perf.errors import NotRunnable
from llama_perf.scheme import Scheme
from llama_perf.spec import KERNELS

Builder: TypeAlias = Callable[[Scheme, torch.device, torch.dtype], AOBaseConfig]

_BUILDERS: dict[tuple[str, str], Builder] = {}
_FILES = (
    "llama_perf.quantize.torchao_schemes",
    "llama_perf.quantize.int8wo",
    "llama_perf.quantize.int8dq",
    "llama_perf.quantize.int4wo",
    "llama_perf.quantize.uintx",
    "llama_perf.quantize.fp6",
    "llama_perf.quantize.sparse_marlin",
)


def register(family: str, *, kernels: str) -> Callable[[Builder], Builder]:
    """Register a builder for a family of schemes on one kind of kernels."""

    def add(builder: Builder) -> Builder:
        key = (family, kernels)
        assert key not in _BUILDERS, f"{key} is registered twice"
        _BUILDERS[key] = builder
        return builder

    return add


def built_kernels(scheme: Scheme) -> list[str]:
    """The kinds of kernels on which `scheme` is built, the preferred one first."""
    for file in _FILES:
        import_module(file)
    return [kernels for kernels in KERNELS if (scheme.family, kernels) in _BUILDERS]


def config_for(
    scheme: Scheme, *, kernels: str, device: torch.device, dtype: torch.dtype
) -> AOBaseConfig:
    """The torchao config of `scheme`.

    Raises NotRunnable where it is not built on these kernels, or needs another
    device or dtype.
    """
    built = built_kernels(scheme)
    if kernels not in built:
        where = f"{kernels}; built on: {', '.join(built)}" if built else "any kernels"
        raise NotRunnable(f"scheme {scheme.name} is not built on {where}")
    return _BUILDERS[scheme.family, kernels](scheme, device, dtype)
