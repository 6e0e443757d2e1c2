"""float8dq: weights and activations as e4m3 floats of eight bits.

`float8dq-row`: weights as in float8wo, one scale for each token. `float8dq-tensor`: one
scale for the whole weight, one for all tokens of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.errors import SpecError
from llama_perf.kernels.float8_dynamic import float8_dynamic
from llama_perf.kernels.row_scaled import FLOAT8
from llama_perf.quantize.float8wo import quantize_rows
from llama_perf.quantize.packed_tensor import (
    NativeTensor,
    check_weight,
    native,
    replace_weight,
)
from llama_perf.quantize.registry import register
from llama_perf.rows.schemes import Scheme

GRANULARITIES = ("row", "tensor")


@dataclass(frozen=True)
class Float8DynamicConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of the native float8dq for torchao's `quantize_`."""

    granularity: str = "row"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            allowed = f"allowed: {', '.join(GRANULARITIES)}"
            raise SpecError("granularity", self.granularity, allowed)


@native
class Float8DynamicWeight(NativeTensor):
    """float8 words (B, W, 16) and float32 scales (B, 16), all alike if per tensor."""

    tensor_data_names: ClassVar = ["codes", "scale"]
    tensor_attribute_names: ClassVar = [
        "granularity",
        "rows",
        "columns",
        "activation_dtype",
    ]
    codes: Tensor
    scale: Tensor
    granularity: str

    @classmethod
    def from_float(cls, weight: Tensor, granularity: str) -> Float8DynamicWeight:
        """Quantize a weight (rows, columns)."""
        codes, scale = quantize_rows(weight, whole=granularity == "tensor")
        return cls(codes, scale, granularity, *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `NativeTensor.matmul`."""
        whole = self.granularity == "tensor"
        return float8_dynamic(x, self.codes, self.scale, self.rows, whole=whole)

    def dequantized(self) -> Tensor:
        """See `NativeTensor.dequantized`."""
        return FLOAT8.dequantized(self.codes, self.scale, self.rows, self.columns)


@register_quantize_module_handler(Float8DynamicConfig)
def _quantize(
    module: nn.Module, config: Float8DynamicConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    weight = getattr(module, parameter_name)
    check_weight(weight, name=f"float8dq-{config.granularity}")
    packed = Float8DynamicWeight.from_float(weight, config.granularity)
    return replace_weight(module, parameter_name, packed)


@register("float8dq-row", kernels="native")
def float8dq_row(
    _scheme: Scheme, _device: torch.device, _dtype: torch.dtype
) -> AOBaseConfig:
    """Weights and activations as e4m3 floats, a scale for each row and token."""
    return Float8DynamicConfig(granularity="row")


@register("float8dq-tensor", kernels="native")
def float8dq_tensor(
    _scheme: Scheme, _device: torch.device, _dtype: torch.dtype
) -> AOBaseConfig:
    """Weights and activations as e4m3 floats, one scale for each tensor."""
    return Float8DynamicConfig(granularity="tensor")
