"""int4wo: weights in int4, asymmetric, a scale and an offset for each group along K.

w = (c - 8) * s + z with codes c of 0 to 15, s and z in 16 bits, as tinygemm has it: by
least squares from s = (max - min) / 15 of the group, or what hqq finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.kernels.grouped import (
    MIDDLE,
    OFFSET,
    dequantized,
    grouped_weight,
    packed_weight,
)
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.groups import (
    check_flag,
    check_group,
    check_group_size,
    hqq_scale_and_zero,
    in_groups,
)
from llama_perf.quantize.packed_tensor import (
    NativeTensor,
    check_weight,
    native,
    replace_weight,
)
from llama_perf.quantize.registry import register
from llama_perf.quantize.search import (
    positive_scale,
    scale_and_offset,
    scale_dtype,
    stored,
)
from llama_perf.rows.schemes import Scheme

BITS = 4


@dataclass(frozen=True)
class Int4WeightConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of the native int4wo for torchao's `quantize_`."""

    group_size: int = 64
    hqq: bool = False

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        check_flag("hqq", self.hqq)


@native
class Int4Weight(NativeTensor):
    """int4 words (B, W, 16), 16-bit scales and offsets (B, G, 16)."""

    tensor_data_names: ClassVar = ["codes", "scale", "zero"]
    tensor_attribute_names: ClassVar = ["rows", "columns", "activation_dtype"]
    codes: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def from_float(cls, weight: Tensor, *, group_size: int, hqq: bool) -> Int4Weight:
        """Quantize a weight (rows, columns)."""
        groups = in_groups(weight, group_size)
        dtype = scale_dtype(groups)
        scale, offset = scale_and_offset(groups, 2**BITS - 1, MIDDLE, dtype)
        if hqq and not weight.is_meta:
            found, zero, suits = hqq_scale_and_zero(groups, BITS)
            found = positive_scale(found, dtype)
            scale = torch.where(suits, found, scale)
            shifted = stored((MIDDLE - zero) * found, dtype)
            offset = torch.where(suits, shifted, offset)
        codes = torch.round((groups - offset) / scale + MIDDLE).clamp(0, 15)
        return cls(
            pack(codes.flatten(1).to(torch.uint8), BITS),
            to_lanes(scale.squeeze(2).to(dtype)),
            to_lanes(offset.squeeze(2).to(dtype)),
            *weight.shape,
            weight.dtype,
        )

    def matmul(self, x: Tensor) -> Tensor:
        """See `NativeTensor.matmul`."""
        parts = (self.codes, self.scale, self.zero)
        return grouped_weight(x, *parts, self.rows, BITS, OFFSET)

    def packed(self) -> Packed | None:
        """See `NativeTensor.packed`."""
        parts = (self.codes, self.scale, self.zero)
        return packed_weight(*parts, self.rows, self.columns, bits=BITS, kind=OFFSET)

    def dequantized(self) -> Tensor:
        """See `NativeTensor.dequantized`."""
        parts = (self.codes, self.scale, self.zero)
        return dequantized(*parts, self.rows, self.columns, bits=BITS, kind=OFFSET)


@register_quantize_module_handler(Int4WeightConfig)
def _quantize(
    module: nn.Module, config: Int4WeightConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    weight = getattr(module, parameter_name)
    name = f"int4wo-{config.group_size}"
    check_weight(weight, name=name)
    check_group(weight, config.group_size, name=name)
    packed = Int4Weight.from_float(weight, group_size=config.group_size, hqq=config.hqq)
    return replace_weight(module, parameter_name, packed)


@register("int4wo", kernels="native")
def int4wo(scheme: Scheme, _device: torch.device, _dtype: torch.dtype) -> AOBaseConfig:
    """Weights in int4, asymmetric, a scale and an offset for each group along K."""
    assert scheme.group_size is not None, f"{scheme.name} has no group size"
    return Int4WeightConfig(group_size=scheme.group_size, hqq=scheme.hqq)
