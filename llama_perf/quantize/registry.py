"""Which scheme is built on which kernels.

One dict says where a family of schemes is built, so that a list of rows can tell
without importing torch; one decorator, in that file, gives the builder: it turns a
parsed scheme into the torchao config that `quantize_` takes. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from llama_perf.errors import NotRunnable
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import KERNELS

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

    Builder: TypeAlias = Callable[[Scheme, torch.device, torch.dtype], AOBaseConfig]

_TORCHAO = "llama_perf.quantize.torchao_schemes"
_FILES = {
    ("int8wo", "native"): "llama_perf.quantize.row_scaled",
    ("int8dq", "native"): "llama_perf.quantize.int8dq",
    ("int4wo", "native"): "llama_perf.quantize.int4wo",
    ("uintx", "native"): "llama_perf.quantize.uintx",
    ("fp6", "native"): "llama_perf.quantize.row_scaled",
    ("float8wo", "native"): "llama_perf.quantize.row_scaled",
    ("float8dq-tensor", "native"): "llama_perf.quantize.float8dq",
    ("float8dq-row", "native"): "llama_perf.quantize.float8dq",
    ("sparse-marlin", "native"): "llama_perf.quantize.sparse_marlin",
    ("autoquant", "native"): "llama_perf.quantize.autoquant.scheme",
    ("autoquant-int4", "native"): "llama_perf.quantize.autoquant.scheme",
    ("int8wo", "torchao"): _TORCHAO,
    ("int8dq", "torchao"): _TORCHAO,
    ("int4wo", "torchao"): _TORCHAO,
    ("float8wo", "torchao"): _TORCHAO,
    ("float8dq-tensor", "torchao"): _TORCHAO,
    ("float8dq-row", "torchao"): _TORCHAO,
}
_BUILDERS: dict[tuple[str, str], Builder] = {}


def register(family: str, *, kernels: str) -> Callable[[Builder], Builder]:
    """Register a builder for a family of schemes on one kind of kernels."""

    def add(builder: Builder) -> Builder:
        key = (family, kernels)
        assert key not in _BUILDERS, f"{key} is registered twice"
        assert _FILES.get(key) == builder.__module__, f"{key} is not in the list above"
        _BUILDERS[key] = builder
        return builder

    return add


def built_kernels(scheme: Scheme) -> list[str]:
    """The kinds of kernels on which `scheme` is built, the preferred one first."""
    return [kernels for kernels in KERNELS if (scheme.family, kernels) in _FILES]


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
    key = (scheme.family, kernels)
    import_module(_FILES[key])
    return _BUILDERS[key](scheme, device, dtype)


def import_all() -> None:
    """Import every scheme, so that its tensors can be loaded."""
    for file in _FILES.values():
        import_module(file)
