"""fp6: weights as e3m2 floats of six bits, one scale for each output channel.

s[n] = amax over k of |w[n, k]| / 28, codes the nearest of w / s; 0.75 byte a weight.
The scale is kept in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import FP6, encode_fp6, fp6_weight
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
class Fp6WeightConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of the native fp6 for torchao's `quantize_`."""


@native
class Fp6Weight(NativeTensor):
    """fp6 words (B, W, 16) in planes of 4 and 2 bits, float32 scales (B, 16)."""

    tensor_data_names: ClassVar = ["codes", "scale"]
    tensor_attribute_names: ClassVar = ["rows", "columns", "activation_dtype"]
    codes: Tensor
    scale: Tensor

    @classmethod
    def from_float(cls, weight: Tensor) -> Fp6Weight:
        """Quantize a weight (rows, columns)."""
        wide = weight.detach().float()
        scale = least_normal(wide.abs().amax(1) / FP6.largest)
        codes = pack(encode_fp6(wide / scale.unsqueeze(1)), FP6.bits)
        return cls(codes, to_lanes(scale), *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `NativeTensor.matmul`."""
        return fp6_weight(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `NativeTensor.packed`."""
        return FP6.packed(self.codes, self.scale, rows=self.rows, columns=self.columns)

    def dequantized(self) -> Tensor:
        """See `NativeTensor.dequantized`."""
        return FP6.dequantized(self.codes, self.scale, self.rows, self.columns)


@register_quantize_module_handler(Fp6WeightConfig)
def _quantize(
    module: nn.Module, _config: Fp6WeightConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    weight = getattr(module, parameter_name)
    check_weight(weight, name="fp6")
    return replace_weight(module, parameter_name, Fp6Weight.from_float(weight))


@register("fp6", kernels="native")
def fp6(_scheme: Scheme, _device: torch.device, _dtype: torch.dtype) -> AOBaseConfig:
    """Weights as e3m2 floats, one scale for each output channel."""
    return Fp6WeightConfig()
