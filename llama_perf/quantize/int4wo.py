"""int4wo: weights in int4, asymmetric, a scale and an offset for each group along K.

w = (c - 8) * s + z with codes c of 0 to 15, s and z in 16 bits, as tinygemm has it: by
least squares from s = (max - min) / 15 of the group, or what hqq finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llama_perf.kernels.grouped import MIDDLE, OFFSET
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.quantize.grouped import GroupedConfig, GroupedWeight, in_groups
from llama_perf.quantize.scale_search import (
    hqq_scale_and_zero,
    positive_scale,
    scale_and_offset,
    scale_dtype,
    stored,
)

BITS = 4


class Int4Weight(GroupedWeight):
    """int4 words (B, W, 16), 16-bit scales and offsets (B, G, 16)."""

    bits = BITS

    @property
    def zero_kind(self) -> int:
        """See `GroupedWeight.zero_kind`."""
        return OFFSET

    @classmethod
    def from_float(cls, weight: Tensor, *, group_size: int, hqq: bool) -> Int4Weight:
        """Quantize a weight (rows, columns)."""
        groups = in_groups(weight, group_size)
        dtype = scale_dtype(groups)
        scale, offset = scale_and_offset(groups, 2**BITS - 1, MIDDLE, dtype)
        if hqq and not weight.is_meta:
            hqq_scale, zero, suits = hqq_scale_and_zero(groups, BITS)
            hqq_scale = positive_scale(hqq_scale, dtype)
            scale = torch.where(suits, hqq_scale, scale)
            hqq_offset = stored((MIDDLE - zero) * hqq_scale, dtype)
            offset = torch.where(suits, hqq_offset, offset)
        codes = torch.round((groups - offset) / scale + MIDDLE).clamp(0, 15)
        return cls(
            pack(codes.flatten(1).to(torch.uint8), BITS),
            to_lanes(scale.squeeze(2).to(dtype)),
            to_lanes(offset.squeeze(2).to(dtype)),
            *weight.shape,
            weight.dtype,
        )


@dataclass(frozen=True)
class Int4WeightConfig(GroupedConfig, families=("int4wo",)):
    """Config of the native int4wo for torchao's `quantize_`."""

    @property
    def scheme(self) -> str:
        """See `NativeConfig.scheme`."""
        return f"int4wo-{self.group_size}"

    def pack(self, weight: Tensor) -> Int4Weight:
        """See `NativeConfig.pack`."""
        return Int4Weight.from_float(weight, group_size=self.group_size, hqq=self.hqq)
