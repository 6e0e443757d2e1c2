"""int4wo: weights in int4, asymmetric, a scale and an offset for each group along K.

w = (c - 8) * s + z with codes c of 0 to 15, s and z in 16 bits, as tinygemm has it: by
least squares from s = (max - min) / 15 of the group, or what hqq finds.
"""

import torch
from torch import Tensor

from llama_perf.kernels.grouped import MIDDLE, OFFSET
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.quantize.grouped import (
    GroupedWeight,
    hqq_scale_and_zero,
    in_groups,
    positive_scale,
    scale_and_offset,
    scale_dtype,
    stored,
)
from llama_perf.rows.schemes import Scheme


class Int4Weight(GroupedWeight, families=("int4wo",)):
    """int4 words (B, W, 16), 16-bit scales and offsets (B, G, 16)."""

    bits = 4
    zero_kind = OFFSET

    @classmethod
    def from_float(cls, weight: Tensor, scheme: Scheme) -> "Int4Weight":
        """See `PackedTensor.from_float`."""
        groups = in_groups(weight, scheme.group_size)
        dtype = scale_dtype(groups)
        scale, offset = scale_and_offset(groups, 15, MIDDLE, dtype)
        if scheme.hqq and not weight.is_meta:
            hqq_scale, zero, suits = hqq_scale_and_zero(groups, cls.bits)
            hqq_scale = positive_scale(hqq_scale, dtype)
            scale = torch.where(suits, hqq_scale, scale)
            hqq_offset = stored((MIDDLE - zero) * hqq_scale, dtype)
            offset = torch.where(suits, hqq_offset, offset)
        codes = torch.round((groups - offset) / scale + MIDDLE).clamp(0, 15)
        return cls(
            pack(codes.flatten(1).to(torch.uint8), cls.bits),
            to_lanes(scale.squeeze(2).to(dtype)),
            to_lanes(offset.squeeze(2).to(dtype)),
            *weight.shape,
            weight.dtype,
        )
