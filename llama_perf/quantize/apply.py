"""Applying a scheme to a module's linear layers, and saying so when it does not fit.

torchao skips a weight that does not fit its group size and only logs it; here that
is an error, so that no row runs unquantized under a quantized name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from llama_perf.errors import SpecError
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.torchao_import import import_torchao
from llama_perf.rows.schemes import AUTOQUANT, INT4_GROUP_SIZES, Scheme

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

Quantizer = Callable[[nn.Module, str], None]


def make_quantizer(
    name: str,
    *,
    kernels: str,
    device: torch.device,
    dtype: torch.dtype,
    schemes: Mapping[tuple[int, int], str] | None = None,
) -> Quantizer:
    """A function that quantizes every linear of a module in place.

    It takes the module and the module's name within the model, for messages.
    `schemes` is what autoquant chose for each shape (N, K).
    Raises SpecError for an unknown scheme, NotRunnable for one not built or not for
    this device; the function raises SpecError for a weight that does not fit.
    """
    import_torchao()
    from torchao.quantization import quantize_

    from llama_perf.quantize.packed_tensor import check_weight
    from llama_perf.quantize.registry import config_for

    scheme = Scheme.parse(name)
    config = config_for(scheme, kernels=kernels, device=device, dtype=dtype)
    if schemes is not None:
        from llama_perf.quantize.autoquant.scheme import AutoquantConfig

        config = AutoquantConfig(schemes=schemes)

    def quantize(module: nn.Module, prefix: str) -> None:
        linears = list(_linears(module, prefix))
        shapes = {path: tuple(linear.weight.shape) for path, linear in linears}
        check_shapes(scheme, config, shapes, device=device)
        for path, linear in linears:
            check_weight(linear.weight, name=name, where=path)
        # A container, since quantize_ replaces children and not the root itself.
        quantize_(nn.ModuleDict({"root": module}), config)
        if scheme.family in AUTOQUANT:
            # It may have chosen to leave a linear as it is.
            return
        for path, linear in _linears(module, prefix):
            if is_unquantized(linear.weight):
                raise SpecError(
                    "quantization",
                    name,
                    f"{kernels} left {path}, {tuple(linear.weight.shape)}, unquantized",
                )

    return quantize


def _linears(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Linear]]:
    for path, child in module.named_modules(prefix=prefix):
        if isinstance(child, nn.Linear):
            yield path, child


def check_shapes(
    scheme: Scheme,
    config: AOBaseConfig,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    device: torch.device,
) -> None:
    """Raise SpecError unless every weight (N, K) of `shapes`, by name, fits."""
    from llama_perf.quantize.grouped import check_group, fitting_groups
    from llama_perf.quantize.packed_tensor import NativeConfig

    common = math.gcd(*(columns for _, columns in shapes.values()))
    for path, (rows, columns) in shapes.items():
        if size := scheme.group_size:
            # In words that hold for every linear of the model.
            sizes = INT4_GROUP_SIZES if scheme.family == "int4wo" else None
            allowed = fitting_groups(common, sizes)
            check_group(columns, size, scheme=scheme.name, where=path, allowed=allowed)
        if isinstance(config, NativeConfig):
            config.check_columns(columns, where=path)
        elif device.type == "cpu" and scheme.family == "int4wo" and rows % 16:
            raise SpecError(
                "quantization",
                scheme.name,
                f"torchao's packing on CPU takes rows in sixteens: N = {rows} of"
                f" {path} must be a multiple of 16",
            )
