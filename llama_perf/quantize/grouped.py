"""int4wo and uintx: a scale and a zero for each group along K, and their search.

    int4wo  w = (c - 8) * s + z with codes c of 0 to 15, z in 16 bits, as tinygemm has
    uintx   w = (c - z) * s with c and the integer z of 0 to 2**bits - 1; the range of
            a group is widened to hold 0, so that z has a place in it

Scales s have 16 bits and are found by least squares, or by torchao's hqq.

The range of a group gives a first scale and zero; fitting both to the codes they lead
to, and ranges somewhat narrower than the group's, may leave less squared error. The
best of the candidates is chosen, group by group, as it will be stored: a scale and an
offset are values of a 16-bit `dtype`, an integer zero is whole. Everything is
(N, G, group size) or (N, G, 1) in float32.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from llama_perf.kernels.grouped import (
    MIDDLE,
    OFFSET,
    PACKED,
    dequantized,
    grouped_weight,
    packed_weight,
)
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.schemes import Scheme

# Values of a weight at a time: as float32 what a core's second-level cache holds, and
# on a card enough for its launches not to count.
_CPU, _CUDA = 1 << 18, 1 << 26
_SHRINKS = (1.0, 0.9, 0.8)


class GroupedWeight(PackedTensor):
    """Words of codes (B, W, 16), 16-bit scales (B, G, 16), and zeros.

    A subclass says in `bits` how many a code has, and in `zero_kind` how
    `llama_perf.kernels.grouped` reads a zero.
    """

    tensor_data_names: ClassVar = ["codes", "scale", "zero"]
    zero: Tensor
    bits: int
    zero_kind: ClassVar[int]

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        parts = (self.codes, self.scale, self.zero)
        return grouped_weight(x, *parts, self.rows, self.bits, self.zero_kind)

    def packed(self) -> Packed:
        """See `PackedTensor.packed`."""
        parts = (self.rows, self.columns, self.codes, self.scale, self.zero)
        return packed_weight(*parts, bits=self.bits, kind=self.zero_kind)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        return dequantized(self.packed())


def in_groups(weight: Tensor, group_size: int | None) -> Tensor:
    """float32 (N, G, group size) of a weight (N, K)."""
    assert group_size is not None, "a scheme without a group size"
    groups: Tensor = weight.detach().float().unflatten(1, (-1, group_size))
    return groups


Search = Callable[..., tuple[Tensor, ...]]


def in_stretches(search: Search) -> Search:
    """`search(groups, ...)` of groups (N, G, size), its results joined along N."""

    @wraps(search)
    def by_rows(groups: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        at_a_time = _CPU if groups.device.type == "cpu" else _CUDA
        step = max(at_a_time // max(groups[:1].numel(), 1), 1)
        if groups.is_meta or len(groups) <= step:
            return search(groups, *args, **kwargs)
        parts = [search(rows, *args, **kwargs) for rows in groups.split(step)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    return by_rows


def scale_dtype(groups: Tensor) -> torch.dtype:
    """float16 with its three more bits where a weight's scales fit it, else bfloat16.

    Only its peak decides: a group far below it loses nothing that the weight would
    miss.
    """
    if groups.is_meta:
        return torch.float16
    fits = 2.0**-8 <= groups.abs().amax().item() <= 2.0**14
    return torch.float16 if fits else torch.bfloat16


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of `dtype`, as float32."""
    return values.to(dtype).to(torch.float32)


def positive_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of `dtype`, at least its smallest one above 0."""
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return stored(scale, dtype).clamp(min=smallest)


@in_stretches
def scale_and_offset(
    groups: Tensor, max_code: int, middle: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """For w = (c - middle) * scale + offset with c of 0 to `max_code`."""
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)

    def start(shrink: float) -> tuple[Tensor, ...]:
        scale = positive_scale((high - low) * (shrink / max_code), dtype)
        offset = stored((high + low) / 2 + (middle - max_code / 2) * scale, dtype)
        return scale, offset, torch.full_like(scale, middle)

    starts = map(start, _SHRINKS)
    return _best(groups, starts, (0, max_code), dtype, fit_offset=True)[:2]


@in_stretches
def scale_and_zero(
    groups: Tensor, max_code: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """For w = (c - zero) * scale with c and a whole zero of 0 to `max_code`."""
    low = groups.amin(2, keepdim=True).clamp(max=0)
    high = groups.amax(2, keepdim=True).clamp(min=0)
    scale = positive_scale((high - low) / max_code, dtype)
    none, middle = torch.zeros_like(scale), torch.round(-low / scale)
    zeros = ((middle + step).clamp(0, max_code) for step in (0, -1, 1))
    starts = ((scale, none, zero) for zero in zeros)
    return _best(groups, starts, (0, max_code), dtype)[::2]


@in_stretches
def symmetric_scale(
    groups: Tensor, min_code: int, max_code: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """For w = c * scale with c of `min_code` to `max_code`, -min_code = max_code + 1.

    A scale may be negative: the value farthest from 0 then gets the code `min_code`.
    """
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    sign = torch.where(high > -low, -1.0, 1.0)
    peak = torch.maximum(high, -low)
    none = torch.zeros_like(peak)
    scales = (positive_scale(peak * (x / -min_code), dtype) for x in _SHRINKS)
    starts = ((scale, none, none) for scale in scales)
    scale, *_ = _best(groups * sign, starts, (min_code, max_code), dtype)
    return (scale * sign,)


def _best(
    groups: Tensor,
    starts: Iterable[tuple[Tensor, ...]],
    codes_range: tuple[int, int],
    dtype: torch.dtype,
    *,
    fit_offset: bool = False,
) -> tuple[Tensor, ...]:
    """The scale, offset and zero with the smallest squared error, group by group.

    The candidates are `starts` and what fits the codes of each best. A group whose
    codes are all one has no slope and keeps its scale.
    """
    best: tuple[Tensor, ...] = ()

    def consider(scale: Tensor, offset: Tensor, zero: Tensor) -> Tensor:
        nonlocal best
        codes = torch.round((groups - offset) / scale + zero).clamp(*codes_range) - zero
        error = (codes * scale + offset - groups).square_().sum(2, keepdim=True)
        candidate = (error, scale, offset, zero)
        if best:
            better, pairs = error < best[0], zip(candidate, best, strict=True)
            best = tuple(torch.where(better, *pair) for pair in pairs)
        else:
            best = candidate
        return codes

    for scale, offset, zero in starts:
        away, target = consider(scale, offset, zero), groups
        if fit_offset:
            mean, centre = (x.mean(2, keepdim=True) for x in (away, groups))
            away, target = away - mean, groups - centre
        slope = (away * target).sum(2, keepdim=True)
        slope = slope / away.square().sum(2, keepdim=True)
        scale = torch.where(slope > 0, positive_scale(slope, dtype), scale)
        if fit_offset:
            offset = stored(centre - mean * scale, dtype)
        consider(scale, offset, zero)
    return best[1:]


@in_stretches
def hqq_scale_and_zero(groups: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Scale and zero of half-quadratic quantization, w = (c - zero) * scale.

    torchao's own search; Badri and Shaji (2023). Both float32 (N, G, 1). The third
    tensor says which groups it suits: its least step is 1 / 20000, too wide for a
    group whose values lie closer together.
    """
    from torchao.quantization.quant_primitives import (
        _choose_qparams_and_quantize_affine_hqq,
    )

    _, *tensors, _ = _choose_qparams_and_quantize_affine_hqq(
        groups.flatten(1),
        nbits=bits,
        group_size=groups.shape[2],
        compute_dtype=torch.float32,
        device=str(groups.device),
        raw_output=True,
    )
    # Clones, since the search leaves inference tensors.
    scale, zero = (tensor.clone().view(*groups.shape[:2], 1) for tensor in tensors)
    span = groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)
    return scale, zero, scale <= span / (2**bits - 1) * 1.01


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
