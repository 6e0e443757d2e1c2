"""int8wo: weights in int8, symmetric, one scale for each output channel.

s[n] = amax over k of |w[n, k]| / 127, q = round(w / s). The scale is kept in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import INT8, int8_weight
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
class Int8WeightConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of the native int8wo for torchao's `quantize_`."""


@native
class Int8Weight(NativeTensor):
    """int8 words (B, W, 16) and float32 scales (B, 16)."""

    tensor_data_names: ClassVar = ["codes", "scale"]
    tensor_attribute_names: ClassVar = ["rows", "columns", "activation_dtype"]
    codes: Tensor
    scale: Tensor

    @classmethod
    def from_float(cls, weight: Tensor) -> Int8Weight:
        """Quantize a weight (rows, columns)."""
        codes, scale = quantize_rows(weight)
        words = pack(codes.to(torch.int32), INT8.bits)
        return cls(words, scale, *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `NativeTensor.matmul`."""
        return int8_weight(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `NativeTensor.packed`."""
        return INT8.packed(self.codes, self.scale, rows=self.rows, columns=self.columns)

    def dequantized(self) -> Tensor:
        """See `NativeTensor.dequantized`."""
        return INT8.dequantized(self.codes, self.scale, self.rows, self.columns)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (N, K) and float32 scales (B, 16), symmetric, one scale a row."""
    wide = weight.detach().float()
    scale = least_normal(wide.abs().amax(1) / 127)
    codes = torch.round(wide / scale.unsqueeze(1)).clamp(-127, 127).to(torch.int8)
    return codes, to_lanes(scale)


@register_quantize_module_handler(Int8WeightConfig)
def _quantize(
    module: nn.Module, _config: Int8WeightConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    weight = getattr(module, parameter_name)
    check_weight(weight, name="int8wo")
    return replace_weight(module, parameter_name, Int8Weight.from_float(weight))


@register("int8wo", kernels="native")
def int8wo(_scheme: Scheme, _device: torch.device, _dtype: torch.dtype) -> AOBaseConfig:
    """Weights in int8, symmetric, one scale for each output channel."""
    return Int8WeightConfig()
