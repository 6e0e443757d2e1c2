"""uintx: codes of 1 to 8 bits, asymmetric, a scale and a zero for each group along K.

w = (c - z) * s with c and the integer z of 0 to 2**bits - 1. The range of a group is
widened to hold 0, so that z has a place in it. z has as many bits as a code, the scale
has 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.kernels.grouped import PACKED
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.quantize.grouped import GroupedConfig, GroupedWeight, in_groups
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.quantize.scale_search import (
    hqq_scale_and_zero,
    in_stretches,
    positive_scale,
    scale_and_zero,
    scale_dtype,
)
from llama_perf.rows.schemes import UINTX_BITS, Scheme


@dataclass(frozen=True)
class UintxWeightConfig(GroupedConfig, families=("uintx",)):
    """Config of the native uintx for torchao's `quantize_`."""

    bits: int = 4

    def __post_init__(self) -> None:
        GroupedConfig.__post_init__(self)
        if type(self.bits) is not int or self.bits not in UINTX_BITS:
            raise SpecError("bits", self.bits, "the bits of uintx are 1 to 8")

    @property
    def scheme(self) -> str:
        """See `NativeConfig.scheme`."""
        return f"uintx-{self.bits}-{self.group_size}"

    @classmethod
    def build(
        cls, scheme: Scheme, _device: torch.device, _dtype: torch.dtype
    ) -> UintxWeightConfig:
        """See `NativeConfig.build`."""
        assert scheme.bits is not None, f"{scheme.name} has no bits"
        assert scheme.group_size is not None, f"{scheme.name} has no group size"
        return cls(bits=scheme.bits, group_size=scheme.group_size, hqq=scheme.hqq)

    def pack(self, weight: Tensor) -> UintxWeight:
        """See `NativeConfig.pack`."""
        return UintxWeight.from_float(weight, self)


class UintxWeight(GroupedWeight):
    """Words (B, W, 16), 16-bit scales (B, G, 16) and zeros packed as the codes are."""

    tensor_attribute_names: ClassVar = ["bits", *PackedTensor.tensor_attribute_names]

    @property
    def zero_kind(self) -> int:
        """See `GroupedWeight.zero_kind`."""
        return PACKED

    @classmethod
    def from_float(cls, weight: Tensor, config: UintxWeightConfig) -> UintxWeight:
        """Quantize a weight (rows, columns)."""
        bits = config.bits
        groups = in_groups(weight, config.group_size)
        dtype = scale_dtype(groups)
        scale, zero = _scale_and_zero(groups, bits, dtype, hqq=config.hqq)
        codes = torch.round(groups / scale + zero).clamp(0, 2**bits - 1)
        zeros = zero.squeeze(2).to(torch.int32)
        return cls(
            pack(codes.flatten(1).to(torch.uint8), bits),
            to_lanes(scale.squeeze(2).to(dtype)),
            pack(zeros, bits),
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
    # A group far from 0 would need a zero that has no place in the codes.
    fits = suits & (hqq_zero >= 0) & (hqq_zero <= max_code)
    # A whole zero may cost more than the search gained, by the measure it lowers.
    error, hqq_error = (
        mean_power(groups, step, place, max_code)
        for step, place in ((scale, zero), (hqq_scale, hqq_zero))
    )
    fits &= hqq_error <= error
    return torch.where(fits, hqq_scale, scale), torch.where(fits, hqq_zero, zero)


def mean_power(groups: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """The mean of |error| ** 0.7 of each group, which hqq lowers: (N, G, 1)."""
    codes = torch.round(groups / scale + zero).clamp(0, max_code)
    error = (codes - zero) * scale - groups
    return error.abs().pow(0.7).mean(2, keepdim=True)
