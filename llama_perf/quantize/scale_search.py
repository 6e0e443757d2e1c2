"""Scales and zeros of groups along K: by least squares, or by torchao's hqq.

The range of a group gives a first scale and zero; fitting both to the codes they lead
to, and ranges somewhat narrower than the group's, may leave less squared error. The
best of the candidates is chosen, group by group, as it will be stored: a scale and an
offset are values of a 16-bit `dtype`, an integer zero is whole. Everything is
(N, G, group size) or (N, G, 1) in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
# Values of a weight at a time: as float32 what a core's second-level cache holds, and
# on a card enough for its launches not to count.
_CPU, _CUDA = 1 << 18, 1 << 26


def in_stretches(
    search: Callable[Concatenate[Tensor, P], tuple[Tensor, ...]],
) -> Callable[Concatenate[Tensor, P], tuple[Tensor, ...]]:
    """`search(groups, ...)` of groups (N, G, size), its results joined along N."""

    @wraps(search)
    def by_rows(
        groups: Tensor, /, *args: P.args, **kwargs: P.kwargs
    ) -> tuple[Tensor, ...]:
        at_a_time = _CPU if groups.device.type == "cpu" else _CUDA
        step = max(at_a_time // max(groups[:1].numel(), 1), 1)
        if groups.is_meta or len(groups) <= step:
            return search(groups, *args, **kwargs)
        parts = [search(rows, *args, **kwargs) for rows in groups.split(step)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    return by_rows


_SHRINKS = (1.0, 0.9, 0.8)


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
    best = _Best(groups)
    for shrink in _SHRINKS:
        scale = positive_scale((high - low) * (shrink / max_code), dtype)
        offset = stored((high + low) / 2 + (middle - max_code / 2) * scale, dtype)
        codes = _codes(groups, scale, offset, middle, max_code)
        best.consider(codes, scale, offset)
        mean, target = codes.mean(2, keepdim=True), groups.mean(2, keepdim=True)
        away = codes - mean
        slope = (away * (groups - target)).sum(2, keepdim=True)
        slope = slope / away.square().sum(2, keepdim=True)
        # A group whose codes are all one has no slope.
        scale = torch.where(slope > 0, positive_scale(slope, dtype), scale)
        offset = stored(target - mean * scale, dtype)
        best.consider(_codes(groups, scale, offset, middle, max_code), scale, offset)
    return best.scale, best.zero


@in_stretches
def scale_and_zero(
    groups: Tensor, max_code: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """For w = (c - zero) * scale with c and a whole zero of 0 to `max_code`."""
    low = groups.amin(2, keepdim=True).clamp(max=0)
    high = groups.amax(2, keepdim=True).clamp(min=0)
    first = positive_scale((high - low) / max_code, dtype)
    middle = torch.round(-low / first)
    best = _Best(groups)
    none = torch.zeros_like(first)
    for step in (0, -1, 1):
        zero = (middle + step).clamp(0, max_code)
        codes = _codes(groups, first, none, zero, max_code)
        best.consider(codes, first, none, zero)
        slope = (codes * groups).sum(2, keepdim=True)
        slope = slope / codes.square().sum(2, keepdim=True)
        scale = torch.where(slope > 0, positive_scale(slope, dtype), first)
        best.consider(_codes(groups, scale, none, zero, max_code), scale, none, zero)
    return best.scale, best.zero


def symmetric_scale(
    groups: Tensor, min_code: int, max_code: int, dtype: torch.dtype
) -> Tensor:
    """For w = c * scale with c of `min_code` to `max_code`, -min_code = max_code + 1.

    A scale may be negative: the value farthest from 0 then gets the code `min_code`.
    """
    (scale,) = _symmetric_scale(groups, min_code, max_code, dtype)
    return scale


@in_stretches
def _symmetric_scale(
    groups: Tensor, min_code: int, max_code: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    sign = torch.where(high > -low, -1.0, 1.0)
    turned = groups * sign
    peak = torch.maximum(high, -low)
    none = torch.zeros_like(peak)
    best = _Best(turned)
    for shrink in _SHRINKS:
        scale = positive_scale(peak * (shrink / -min_code), dtype)
        codes = torch.round(turned / scale).clamp(min_code, max_code)
        best.consider(codes, scale, none)
        slope = (codes * turned).sum(2, keepdim=True)
        slope = slope / codes.square().sum(2, keepdim=True)
        # A group whose codes are all 0 has no slope.
        scale = torch.where(slope > 0, positive_scale(slope, dtype), scale)
        codes = torch.round(turned / scale).clamp(min_code, max_code)
        best.consider(codes, scale, none)
    return (best.scale * sign,)


def _codes(
    groups: Tensor, scale: Tensor, offset: Tensor, middle: Tensor | float, max_code: int
) -> Tensor:
    """Codes less their middle or zero."""
    return torch.round((groups - offset) / scale + middle).clamp(0, max_code) - middle


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

    rows, count, size = groups.shape
    _, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
        groups.flatten(1),
        nbits=bits,
        group_size=size,
        compute_dtype=torch.float32,
        device=str(groups.device),
        raw_output=True,
    )
    shape = (rows, count, 1)
    # Clones, since the search leaves inference tensors.
    scale, zero = scale.clone().view(shape), zero.clone().view(shape)
    span = groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)
    return scale, zero, scale <= span / (2**bits - 1) * 1.01


class _Best:
    """The scale and zero with the smallest squared error seen so far."""

    def __init__(self, groups: Tensor) -> None:
        self._groups = groups
        self._error: Tensor | None = None
        self.scale = self.zero = groups

    def consider(
        self, codes: Tensor, scale: Tensor, offset: Tensor, zero: Tensor | None = None
    ) -> None:
        """Keep `scale` and `zero` (`offset` if not given) where they are better."""
        candidate = offset if zero is None else zero
        error = (codes * scale + offset - self._groups).square_().sum(2, keepdim=True)
        if self._error is None:
            self._error, self.scale, self.zero = error, scale, candidate
            return
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, candidate, self.zero)
