"""float8wo: weights as e4m3 floats of eight bits, one scale for each output channel.

s[n] = amax over k of |w[n, k]| / 448, codes the nearest of w / s, as torchao has them
but for two things: the scale is computed in float32 whatever the weight's dtype, and a
row of zeros stays zeros. The scale is kept in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import FLOAT8, encode_float8, float8_weight
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import (
    NativeTensor,
    check_weight,
    least_normal,
    native,
    replace_weight,
)
from llama_perf.quantize.registry import register
from llama_perf.rows.schemes import Scheme


@dataclass(frozen=True)
class Float8WeightConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of the native float8wo for torchao's `quantize_`."""


@native
class Float8Weight(NativeTensor):
    """float8 words (B, W, 16) and float32 scales (B, 16)."""

    tensor_data_names: ClassVar = ["codes", "scale"]
    tensor_attribute_names: ClassVar = ["rows", "columns", "activation_dtype"]
    codes: Tensor
    scale: Tensor

    @classmethod
    def from_float(cls, weight: Tensor) -> Float8Weight:
        """Quantize a weight (rows, columns)."""
        codes, scale = quantize_rows(weight)
        return cls(codes, scale, *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `NativeTensor.matmul`."""
        return float8_weight(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `NativeTensor.packed`."""
        return FLOAT8.packed(
            self.codes, self.scale, rows=self.rows, columns=self.columns
        )

    def dequantized(self) -> Tensor:
        """See `NativeTensor.dequantized`."""
        return FLOAT8.dequantized(self.codes, self.scale, self.rows, self.columns)


def quantize_rows(weight: Tensor, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """float8 words (B, W, 16) and float32 scales (B, 16) of a weight (N, K).

    With `whole` every row has the scale of the whole weight.
    """
    wide = weight.detach().float()
    peak = wide.abs().amax(1)
    if whole:
        peak = peak.amax().expand_as(peak)
    scale = least_normal(peak / FLOAT8.largest)
    return pack(encode_float8(wide / scale.unsqueeze(1)), FLOAT8.bits), to_lanes(scale)


@register_quantize_module_handler(Float8WeightConfig)
def _quantize(
    module: nn.Module, _config: Float8WeightConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    weight = getattr(module, parameter_name)
    check_weight(weight, name="float8wo")
    return replace_weight(module, parameter_name, Float8Weight.from_float(weight))


@register("float8wo", kernels="native")
def float8wo(
    _scheme: Scheme, _device: torch.device, _dtype: torch.dtype
) -> AOBaseConfig:
    """Weights as e4m3 floats, one scale for each output channel."""
    return Float8WeightConfig()
