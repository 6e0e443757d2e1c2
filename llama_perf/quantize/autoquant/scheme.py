"""autoquant: each linear in the scheme that was chosen for its shape.

The choice is made by `llama_perf.autoquant`, before a model is built; here it is
applied. Knows neither clocks nor models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import quantize_
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.errors import SpecError
from llama_perf.quantize.registry import config_for, register
from llama_perf.rows.schemes import UNQUANTIZED, Scheme


@dataclass(frozen=True)
class AutoquantConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of the native autoquant for torchao's `quantize_`.

    `schemes`: for each shape (N, K) a native scheme's name, or "none".
    """

    schemes: Mapping[tuple[int, int], str] = field(default_factory=dict)


@register_quantize_module_handler(AutoquantConfig)
def _quantize(
    module: nn.Module, config: AutoquantConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    weight = getattr(module, parameter_name)
    shape = tuple(weight.shape)
    if shape not in config.schemes:
        known = ", ".join(map(str, config.schemes)) or "no shape at all"
        raise SpecError("shape", shape, f"autoquant chose for {known}")
    name = config.schemes[shape]
    if name == UNQUANTIZED:
        return module
    chosen = config_for(
        Scheme.parse(name), kernels="native", device=weight.device, dtype=weight.dtype
    )
    # In a container, since quantize_ replaces children and not the root itself.
    root = nn.ModuleDict({"linear": module})
    quantize_(root, chosen)
    return root["linear"]


@register("autoquant", kernels="native")
@register("autoquant-int4", kernels="native")
def autoquant(
    _scheme: Scheme, _device: torch.device, _dtype: torch.dtype
) -> AOBaseConfig:
    """Each linear in the scheme chosen for its shape; nothing is chosen yet."""
    return AutoquantConfig()
