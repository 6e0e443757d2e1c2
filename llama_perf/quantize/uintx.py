"""uintx: codes of 1 to 8 bits, asymmetric, a scale and a zero for each group along K.

w = (c - z) * s with c and the integer z of 0 to 2**bits - 1. The range of a group is
widened to hold 0, so that z has a place in it. z has as many bits as a code, the scale
has 16.
"""

from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.kernels.grouped import PACKED
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.quantize.grouped import (
    GroupedWeight,
    hqq_scale_and_zero,
    in_groups,
    in_stretches,
    positive_scale,
    scale_and_zero,
    scale_dtype,
)
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.schemes import Scheme


class UintxWeight(GroupedWeight, families=("uintx",)):
    """Words (B, W, 16), 16-bit scales (B, G, 16) and zeros packed as the codes are."""

    tensor_attribute_names: ClassVar = ["bits", *PackedTensor.tensor_attribute_names]
    zero_kind = PACKED

    @classmethod
    def from_float(cls, weight: Tensor, scheme: Scheme) -> "UintxWeight":
        """See `PackedTensor.from_float`."""
        bits = scheme.bits
        assert bits is not None, f"{scheme.name} has no bits"
        groups = in_groups(weight, scheme.group_size)
        dtype = scale_dtype(groups)
        scale, zero = _scale_and_zero(groups, bits, dtype, hqq=scheme.hqq)
        codes = torch.round(groups / scale + zero).clamp(0, 2**bits - 1)
        return cls(
            pack(codes.flatten(1).to(torch.uint8), bits),
            to_lanes(scale.squeeze(2).to(dtype)),
            pack(zero.squeeze(2).to(torch.int32), bits),
            bits,
            *weight.shape,
            weight.dtype,
        )


@in_stretches
def _scale_and_zero(
    groups: Tensor, bits: int, dtype: torch.dtype, *, hqq: bool
) -> tuple[Tensor, ...]:
    """Scales that are values of `dtype` and zeros that are whole, float32 (N, G, 1)."""
    max_code = 2**bits - 1
    scale, zero = scale_and_zero(groups, max_code, dtype)
    if not hqq or groups.is_meta:
        return scale, zero
    hqq_scale, hqq_zero, suits = hqq_scale_and_zero(groups, bits)
    hqq_scale = positive_scale(hqq_scale, dtype)
    hqq_zero = torch.round(hqq_zero)

    def mean_power(scale: Tensor, zero: Tensor) -> Tensor:
        """The mean of |error| ** 0.7 of each group, which hqq lowers: (N, G, 1)."""
        codes = torch.round(groups / scale + zero).clamp(0, max_code)
        error = (codes - zero) * scale - groups
        return error.abs().pow(0.7).mean(2, keepdim=True)

    # A group far from 0 would need a zero that has no place in the codes. And a whole
    # zero may cost more than the search gained, by the measure it lowers.
    fits = suits & (hqq_zero >= 0) & (hqq_zero <= max_code)
    fits &= mean_power(hqq_scale, hqq_zero) <= mean_power(scale, zero)
    return torch.where(fits, hqq_scale, scale), torch.where(fits, hqq_zero, zero)
