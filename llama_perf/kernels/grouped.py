"""Products with codes of 1 to 8 bits, a scale and a zero for each group along K.

    y[m, n] = sum over k of x[m, k] * w[n, k],   g = k / group size
    w[n, k] = (c[n, k] - z[n, g]) * s[n, g]            INTEGER and PACKED zeros
    w[n, k] = (c[n, k] - 8) * s[n, g] + z[n, g]        OFFSET (as tinygemm keeps int4)

`c` are codes in words of `packing`; `s` has 16 bits; `z` is int32, packed in as many
bits as the codes, or of 16 bits in units of the weight. Scales and zeros lie as the
codes do, 16 rows side by side: (B, G, 16). Sums are in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import packing
from llama_perf.kernels.cpu import many_tokens
from llama_perf.kernels.cpu.one_token import fused_here, unit_sums
from llama_perf.kernels.weight import Packed

INTEGER, PACKED, OFFSET = 1, 2, 3
MIDDLE = 8.0
_FEW = 32


def packed_weight(
    rows: int, columns: int, *tensors: Tensor, bits: int, kind: int
) -> Packed:
    """The weight as the kernels on CUDA take it: codes, scales and zeros."""
    group = columns // tensors[1].shape[1]
    return Packed(rows, columns, *tensors, bits=bits, group=group, zero_kind=kind)


def dequantized(weight: Packed) -> Tensor:
    """The weight, float32 (rows, columns)."""
    blocks = _blocks(*weight.tensors, weight.columns, weight.bits, weight.zero_kind)
    return packing.from_lanes(blocks, weight.rows)


def grouped_weight(x: Tensor, *weight: Any) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in x's dtype.

    `weight` is as of the operator.
    """
    if fused_here(x):
        codes, scale, zero, rows, bits, kind = weight
        sums = _one_token(x.float(), codes, scale, zero, bits, kind)
        return sums.view(1, -1)[:, :rows].to(x.dtype)
    out: Tensor = grouped_weight_op(x, *weight)
    return out


def _one_token(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, kind: int
) -> Tensor:
    groups, columns = scale.shape[1], x.shape[1]
    size = columns // groups
    unit = packing.UNIT // 2 if bits == 8 else packing.UNIT
    if size % unit:
        # A unit lies in several groups.
        weight = _blocks(codes, scale, zero, columns, bits, kind)
        return (weight * x.view(1, columns, 1)).sum(1)
    sums = unit_sums(x, codes, bits, _float, (2,), split=(groups, size // unit))
    x_sums = x.view(groups, size).sum(1).unsqueeze(1)
    wide, zeros = _float(scale), _float(_stored(zero, bits, kind, groups))
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
    tokens, columns = x.shape
    # Each plane costs a product. For many tokens one product of full codes is cheaper.
    few = tokens <= _FEW or len(packing.planes(bits)) == 1
    if few and _in_words(bits, columns, scale.shape[1]):
        sums = _slotwise(x.float(), codes, scale, zero, bits, kind)
        return sums[:, :rows].to(x.dtype).contiguous()

    def dequantize(blocks: slice) -> Tensor:
        some = (codes[blocks], scale[blocks], zero[blocks])
        return _blocks(*some, columns, bits, kind)

    return many_tokens.by_unpacked_blocks(x, codes, rows, dequantize)


@grouped_weight_op.register_fake
def _(x: Tensor, _c: Tensor, _s: Tensor, _z: Tensor, rows: int, *_: int) -> Tensor:
    return x.new_empty((len(x), rows))


@grouped_weight_op.register_kernel("cuda")
def _(x: Tensor, *weight: Any) -> Tensor:
    from llama_perf.kernels.triton.launch_products import product

    *tensors, rows, bits, kind = weight
    return product(x, packed_weight(rows, x.shape[1], *tensors, bits=bits, kind=kind))


def _in_words(bits: int, columns: int, groups: int) -> bool:
    """Whether in every plane groups fill words, or words hold full groups."""
    size = columns // groups
    for plane in packing.planes(bits):
        per_word = 32 // plane
        fits = packing.plane_words(plane, columns) * per_word == columns
        if per_word % size and (size % per_word or not fits):
            return False
    return True


def _slotwise(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, kind: int
) -> Tensor:
    """The product with groups that fit the words, float32 (M, 16 * B)."""
    tokens, columns = x.shape
    groups = scale.shape[1]
    size = columns // groups
    by_plane = []
    for low, plane, words in packing.parts(codes, bits, columns):
        arranged = many_tokens.in_slots(x * 2.0**low, words.shape[1], 32 // plane)
        room = many_tokens.room(words, 32 // plane, columns)
        by_plane.append((low, plane, words, arranged, room))
    x_sums = x.view(tokens, groups, size).sum(2)

    def multiply(blocks: slice) -> Tensor:
        wide = _float(scale[blocks])
        if kind == OFFSET:
            total = torch.matmul(x_sums, _float(zero[blocks]))
            zeros = torch.full_like(wide, MIDDLE, dtype=torch.int32)
        else:
            total = wide.new_zeros((len(wide), tokens, packing.LANES))
            zeros = _stored(zero[blocks], bits, kind, groups)
        for low, plane, words, arranged, room in by_plane:
            values = many_tokens.plane_values(words[blocks], plane, room)
            # Zeros are subtracted before the sums, as in the formula, and plane by
            # plane: terms that are large in both would cost the sum its last digits.
            piece = zeros >> low
            if low + plane < bits:
                piece = piece & (2**plane - 1)
            by_group = _by_group(values, size)
            by_group -= _of_groups(_float(piece), values, size)
            by_group *= _of_groups(wide, values, size)
            total += many_tokens.product(arranged, values)
        return total

    return many_tokens.by_blocks(tokens, codes, columns, multiply)


def _by_group(values: Tensor, size: int) -> Tensor:
    """Values (b, S, W, 16) as (b, groups of a word, their slots, W, 16)."""
    blocks, slots, words, lanes = values.shape
    return values.view(blocks, -1, min(size, slots), words, lanes)


def _of_groups(groups: Tensor, values: Tensor, size: int) -> Tensor:
    """A number of each group, (b, G, 16), to be broadcast over `_by_group(values)`."""
    slots, words = values.shape[1:3]
    if size > slots:
        return groups.repeat_interleave(size // slots, 1)[:, None, None]
    # A word has one or more groups, the last word perhaps fewer.
    count = slots // size
    groups = F.pad(groups, (0, 0, 0, words * count - groups.shape[1]))
    by_word = groups.view(-1, words, count, packing.LANES).transpose(1, 2)
    return by_word.contiguous().unsqueeze(2)


def _blocks(
    codes: Tensor, scale: Tensor, zero: Tensor, columns: int, bits: int, kind: int
) -> Tensor:
    groups = scale.shape[1]
    values: Tensor = _float(packing.unpack(codes, bits, columns))
    values = values.unflatten(1, (groups, -1))
    wide = _float(scale).unsqueeze(2)
    zeros = _float(_stored(zero, bits, kind, groups)).unsqueeze(2)
    if kind == OFFSET:
        return ((values - MIDDLE) * wide + zeros).flatten(1, 2)
    return ((values - zeros) * wide).flatten(1, 2)


def _stored(zero: Tensor, bits: int, kind: int, groups: int) -> Tensor:
    return packing.unpack(zero, bits, groups) if kind == PACKED else zero


def _float(code: Tensor) -> Tensor:
    return code.to(torch.float32)
