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

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from llama_perf.devices.ranks import max_over_ranks
from llama_perf.kernels.grouped import MIDDLE
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.weight import OFFSET, PACKED, Packed
from llama_perf.quantize.hqq import hqq_scale_and_zero
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.schemes import Scheme

# Values of a weight at a time: as float32 what two cores' second-level caches hold, and
# on a card enough for its launches not to count.
_CPU, _CUDA = 1 << 19, 1 << 26
# Groups that are outermost in memory: torch is slow in loops along short dimensions.
_SHORT = 8
_SHRINKS = (1.0, 0.9, 0.8)

Fit = tuple[Tensor, ...]
"""A scale, an offset and a zero for each group: w = (c - zero) * scale + offset."""


class GroupedWeight(PackedTensor):
    """Words of codes (B, W, 16), 16-bit scales (B, G, 16), and zeros.

    A subclass says in `bits` how many a code has, and in `zero_kind` how
    `llama_perf.kernels.grouped` reads a zero.
    """

    tensor_data_names: ClassVar = ["codes", "scale", "zero"]
    zero: Tensor
    bits: int
    zero_kind: ClassVar[int]

    @classmethod
    def from_float(
        cls, weight: Tensor, scheme: Scheme, cut: str | None = None
    ) -> "GroupedWeight":
        assert scheme.group_size is not None, f"{scheme.name} has no group size"
        groups = weight.detach().float().unflatten(1, (-1, scheme.group_size))
        dtype, bits = scale_dtype(groups, cut=cut), scheme.bits or cls.bits
        found = _quantized(groups, dtype, bits, cls.zero_kind, hqq=scheme.hqq)
        codes, scale, zero = (tensor.flatten(1) for tensor in found)
        words, scales = pack(codes, bits), to_lanes(scale.to(dtype))
        shape = (*weight.shape, weight.dtype)
        if cls.zero_kind == PACKED:
            return cls(words, scales, pack(zero.to(torch.int32), bits), bits, *shape)
        return cls(words, scales, to_lanes(zero.to(dtype)), *shape)

    @property
    def group(self) -> int:
        """The columns that have one scale."""
        return self.columns // self.scale.shape[1]

    def packed(self) -> Packed:
        parts = (self.codes, self.scale, self.zero, self.rows, self.columns)
        kind = self.zero_kind
        return Packed(*parts, bits=self.bits, group=self.group, zero_kind=kind)


class Int4Weight(GroupedWeight, families=("int4wo",)):
    """int4 words (B, W, 16), 16-bit scales and offsets (B, G, 16)."""

    bits = 4
    zero_kind = OFFSET

    @property
    def scheme_name(self) -> str:
        return f"int4wo-{self.group}"


class UintxWeight(GroupedWeight, families=("uintx",)):
    """Words (B, W, 16), 16-bit scales (B, G, 16) and zeros packed as the codes are."""

    tensor_attribute_names: ClassVar = ["bits", *PackedTensor.tensor_attribute_names]
    zero_kind = PACKED

    @property
    def scheme_name(self) -> str:
        return f"uintx-{self.bits}-{self.group}"


def codes_of_groups(
    weight: Tensor, scheme: Scheme, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, uint8 (N, K), scales of `dtype` and float32 zeros (N, G).

    They are those of the native scheme, for libraries that pack them: (c - z) * s.
    """
    assert scheme.group_size is not None, f"{scheme.name} has no group size"
    groups = weight.detach().float().unflatten(1, (-1, scheme.group_size))
    kind, bits = (OFFSET, 4) if scheme.bits is None else (PACKED, scheme.bits)
    found = _quantized(groups, dtype, bits, kind, hqq=scheme.hqq)
    codes, scale, zero = (tensor.flatten(1) for tensor in found)
    if kind == OFFSET:
        zero = MIDDLE - zero / scale
    return codes, scale.to(dtype), zero


Search = Callable[..., tuple[Tensor, ...]]


def in_stretches(search: Search) -> Search:
    """`search(groups, ...)` of groups (N, G, size), its results joined along N.

    Of `by_row`, (N,), it gets the values of the same rows.
    """

    @wraps(search)
    def by_rows(
        groups: Tensor, *args: Any, by_row: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        if by_row is not None:
            kwargs["by_row"] = by_row
        at_a_time = _CPU if groups.device.type == "cpu" else _CUDA
        step = max(at_a_time // max(groups[:1].numel(), 1), 1)
        if groups.is_meta or len(groups) <= step:
            return search(groups, *args, **kwargs)
        parts = []
        for first in range(0, len(groups), step):
            rows = slice(first, first + step)
            if by_row is not None:
                kwargs["by_row"] = by_row[rows]
            parts.append(search(groups[rows], *args, **kwargs))
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    return by_rows


def scale_dtype(groups: Tensor, *, cut: str | None = None) -> torch.dtype:
    """float16 with its three more bits where a weight's scales fit it, else bfloat16.

    Only its peak decides: a group far below it loses nothing that the weight would
    miss. Of a weight that is `cut`, it is the peak of all ranks' shares.
    """
    if groups.is_meta:
        return torch.float16
    peak = largest(groups)
    fits = 2.0**-8 <= (max_over_ranks(peak) if cut else peak).item() <= 2.0**14
    return torch.float16 if fits else torch.bfloat16


def largest(weight: Tensor, dim: int | None = None) -> Tensor:
    """The largest absolute value, or all along `dim`, without a copy of the weight."""
    low, high = weight.aminmax(dim=dim)
    return torch.maximum(-low, high)


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of `dtype`, as float32."""
    return values.to(dtype).to(torch.float32)


def _positive_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of `dtype`, at least its smallest one above 0."""
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return _stored(scale, dtype).clamp(min=smallest)


@in_stretches
def _quantized(
    groups: Tensor, dtype: torch.dtype, bits: int, kind: int, *, hqq: bool
) -> tuple[Tensor, ...]:
    """Codes, uint8 (N, G, size), scales and zeros (N, G, 1), which are `kind`'s."""
    if groups.shape[2] <= _SHORT:
        groups = groups.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    offsets, codes_range = kind == OFFSET, (0, 2**bits - 1)
    starts = _with_offsets(groups, dtype) if offsets else _whole(groups, bits, dtype)
    fit = _best(groups, starts, codes_range, dtype, fit_offset=offsets)
    if hqq and not groups.is_meta:
        scale, zero, suits = hqq_scale_and_zero(groups, bits)
        scale = _positive_scale(scale, dtype)
        if offsets:
            offset = _stored((MIDDLE - zero) * scale, dtype)
            found: Fit = (scale, offset, fit[2])
        else:
            found = (scale, fit[1], torch.round(zero))
            # A group far from 0 would need a zero that has no place in the codes. And
            # a whole zero may cost more than the search gained, by what hqq lowers:
            # the mean of |error| ** 0.7 of each group.
            suits &= found[2] == found[2].clamp(*codes_range)
            room = _room(groups)
            costs = (
                _rounded(groups, one, codes_range, room)[1] for one in (found, fit)
            )
            ours, before = (x.abs().pow(0.7).mean(2, keepdim=True) for x in costs)
            suits &= ours <= before
        fit = tuple(torch.where(suits, *pair) for pair in zip(found, fit, strict=True))
    scale, offset, zero = fit
    codes = torch.round((groups - offset) / scale + zero).clamp(*codes_range)
    return codes.to(torch.uint8), scale, offset if offsets else zero


def _with_offsets(groups: Tensor, dtype: torch.dtype) -> Iterator[Fit]:
    """For int4, whose zero is the middle of the codes."""
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    for shrink in _SHRINKS:
        scale = _positive_scale((high - low) * (shrink / 15), dtype)
        offset = _stored((high + low) / 2 + (MIDDLE - 7.5) * scale, dtype)
        yield scale, offset, torch.full_like(scale, MIDDLE)


def _whole(groups: Tensor, bits: int, dtype: torch.dtype) -> Iterator[Fit]:
    """With whole zeros that are codes, and no offset."""
    max_code = 2**bits - 1
    low = groups.amin(2, keepdim=True).clamp(max=0)
    high = groups.amax(2, keepdim=True).clamp(min=0)
    scale = _positive_scale((high - low) / max_code, dtype)
    none, middle = torch.zeros_like(scale), torch.round(-low / scale)
    for step in (0, -1, 1):
        yield scale, none, (middle + step).clamp(0, max_code)


@in_stretches
def symmetric_scale(
    groups: Tensor, min_code: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """For w = c * scale with codes c of `min_code` to -min_code - 1.

    A scale may be negative: the value farthest from 0 then gets the code `min_code`.
    """
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    sign = torch.where(high > -low, -1.0, 1.0)
    peak = torch.maximum(high, -low)
    none = torch.zeros_like(peak)
    scales = (_positive_scale(peak * (x / -min_code), dtype) for x in _SHRINKS)
    starts = ((scale, none, none) for scale in scales)
    scale, *_ = _best(groups * sign, starts, (min_code, -min_code - 1), dtype)
    return (scale * sign,)


def _room(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors for what is computed again and again."""
    return torch.empty_like(groups), torch.empty_like(groups)


def _rounded(
    groups: Tensor, fit: Fit, codes_range: tuple[int, int], room: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The nearest codes less their zero, and the error they leave, both in `room`."""
    scale, offset, zero = fit
    codes = torch.sub(groups, offset, out=room[0]).div_(scale).add_(zero).round_()
    codes.clamp_(*codes_range).sub_(zero)
    return codes, torch.mul(codes, scale, out=room[1]).add_(offset).sub_(groups)


def _best(
    groups: Tensor,
    starts: Iterable[Fit],
    codes_range: tuple[int, int],
    dtype: torch.dtype,
    *,
    fit_offset: bool = False,
) -> Fit:
    """The fit with the smallest squared error, group by group.

    The candidates are `starts` and what fits the codes of each best. A group whose
    codes are all one has no slope and keeps its scale.
    """
    best: tuple[Tensor, ...] = ()
    room, target = _room(groups), groups
    if fit_offset:
        centre = groups.mean(2, keepdim=True)
        target = groups - centre

    def consider(*fit: Tensor) -> Tensor:
        nonlocal best
        codes, error = _rounded(groups, fit, codes_range, room)
        candidate = (error.square_().sum(2, keepdim=True), *fit)
        if best:
            better, pairs = candidate[0] < best[0], zip(candidate, best, strict=True)
            best = tuple(torch.where(better, *pair) for pair in pairs)
        else:
            best = candidate
        return codes

    for scale, offset, zero in starts:
        away = consider(scale, offset, zero)
        if fit_offset:
            mean = away.mean(2, keepdim=True)
            away.sub_(mean)
        slope = torch.mul(away, target, out=room[1]).sum(2, keepdim=True)
        slope = slope / away.square_().sum(2, keepdim=True)
        scale = torch.where(slope > 0, _positive_scale(slope, dtype), scale)
        if fit_offset:
            offset = _stored(centre - mean * scale, dtype)
        consider(scale, offset, zero)
    return best[1:]
