"""Products with codes of 1 to 8 bits, a scale and a zero for each group along K.

    y[m, n] = sum over k of x[m, k] * w[n, k],   g = k / group size
    w[n, k] = (c[n, k] - z[n, g]) * s[n, g]            INTEGER and PACKED zeros
    w[n, k] = (c[n, k] - 8) * s[n, g] + z[n, g]        OFFSET (as tinygemm keeps int4)

`c` are codes in words of `packing`; `s` has 16 bits; `z` is int32, packed in as many
bits as the codes, or of 16 bits in units of the weight. Scales and zeros lie as the
codes do, 16 rows side by side: (B, G, 16). Sums are in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.kernels.packing import UNIT, from_lanes, unpack
from llama_perf.kernels.portable import by_stretches, fused_here, unit_sums

INTEGER, PACKED, OFFSET = 1, 2, 3
MIDDLE = 8.0


def dequantized(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    columns: int,
    *,
    bits: int,
    kind: int,
) -> Tensor:
    """The weight, float32 (rows, columns)."""
    return from_lanes(_blocks(codes, scale, zero, columns, bits, kind), rows)


def reference(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    bits: int,
    kind: int,
) -> Tensor:
    """The product by the formula, in float32."""
    columns = x.shape[1]
    weight = dequantized(codes, scale, zero, rows, columns, bits=bits, kind=kind)
    return x.float() @ weight.T


def grouped_weight(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    bits: int,
    kind: int,
) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in x's dtype."""
    if fused_here(x):
        sums = _one_token(x.float(), codes, scale, zero, bits, kind)
        return sums.view(1, -1)[:, :rows].to(x.dtype)
    out: Tensor = grouped_weight_op(x, codes, scale, zero, rows, bits, kind)
    return out


def _one_token(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, kind: int
) -> Tensor:
    groups, columns = scale.shape[1], x.shape[1]
    size = columns // groups
    unit = UNIT // 2 if bits == 8 else UNIT
    if size % unit:
        # A unit lies in several groups.
        weight = _blocks(codes, scale, zero, columns, bits, kind)
        return (weight * x.view(1, columns, 1)).sum(1)
    sums = unit_sums(x, codes, bits, _float, (2,), split=(groups, size // unit))
    x_sums = x.view(groups, size).sum(1).unsqueeze(1)
    wide = scale.to(torch.float32)
    zeros = _zeros(zero, bits, kind, groups)
    if kind == OFFSET:
        return ((sums - MIDDLE * x_sums) * wide + zeros * x_sums).sum(1)
    return ((sums - zeros * x_sums) * wide).sum(1)


@torch.library.custom_op("llama_perf::grouped_weight", mutates_args=())
def grouped_weight_op(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    bits: int,
    kind: int,
) -> Tensor:
    """The operator itself: any M, any device."""
    columns = x.shape[1]

    def dequantize(blocks: slice) -> Tensor:
        part = (codes[blocks], scale[blocks], zero[blocks])
        return _blocks(*part, columns, bits, kind)

    return by_stretches(x, codes, rows, dequantize).to(x.dtype).contiguous()


@grouped_weight_op.register_fake
def _(
    x: Tensor,
    _codes: Tensor,
    _scale: Tensor,
    _zero: Tensor,
    rows: int,
    _bits: int,
    _kind: int,
) -> Tensor:
    return x.new_empty((x.shape[0], rows))


@grouped_weight_op.register_kernel("cuda")
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    bits: int,
    kind: int,
) -> Tensor:
    from llama_perf.kernels.triton_products import grouped_product

    return grouped_product(x, codes, scale, zero, rows, bits=bits, kind=kind)


def _blocks(
    codes: Tensor, scale: Tensor, zero: Tensor, columns: int, bits: int, kind: int
) -> Tensor:
    groups = scale.shape[1]
    whole: Tensor = _float(unpack(codes, bits, columns)).unflatten(1, (groups, -1))
    wide = scale.to(torch.float32).unsqueeze(2)
    zeros = _zeros(zero, bits, kind, groups).unsqueeze(2)
    if kind == OFFSET:
        return ((whole - MIDDLE) * wide + zeros).flatten(1, 2)
    return ((whole - zeros) * wide).flatten(1, 2)


def _zeros(zero: Tensor, bits: int, kind: int, groups: int) -> Tensor:
    stored = unpack(zero, bits, groups) if kind == PACKED else zero
    return stored.to(torch.float32)


def _float(code: Tensor) -> Tensor:
    return code.to(torch.float32)
