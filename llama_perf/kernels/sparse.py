"""Products with a 2:4 sparse int4 weight, a scale for each group of 128 along K.

    y[m, n] = sum over q, i of x[m, 4 q + p[n, q, i]] * v[n, q, i] * s[n, q / 32]
    v[n, q, i] = (c[n, q, i] & 15) - 8
    p[n, q, i] = c[n, q, i] >> 4          p[n, q, 0] < p[n, q, 1]

Of each quad q, four columns, two are stored: i = 0 and 1. `c` are six bits in words of
`packing` (planes of 4 and 2 bits), stored value 2 q + i in the place of a column, so
that a weight takes 3 bits. `s` has 16 bits and lies as the codes do, (B, G, 16), with
G = ceil(K / 128): the last group may be shorter, K is a multiple of 4. Sums are in
float32. The pattern is that of NVIDIA's sparse tensor cores, the format's name from
Sparse-Marlin by Frantar et al. (2024).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import packing
from llama_perf.kernels.cpu.many_tokens import by_unpacked_blocks
from llama_perf.kernels.cpu.one_token import fused_here
from llama_perf.kernels.weight import SPARSE, Packed

BITS = 6
MIDDLE = 8
QUAD = 4
GROUP = 128


def dequantized(codes: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """The weight, float32 (rows, columns), from words (B, W, 16), scales (B, G, 16)."""
    return packing.from_lanes(_blocks(codes, scale, columns), rows)


def packed_weight(rows: int, columns: int, codes: Tensor, scale: Tensor) -> Packed:
    """The weight as the kernels on CUDA take it."""
    return Packed(rows, columns, codes, scale, scale, format=SPARSE, bits=BITS)


def sparse_weight(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in x's dtype."""
    if fused_here(x):
        sums = _one_token(x.float(), codes, scale)
        return sums.view(1, -1)[:, :rows].to(x.dtype)
    out: Tensor = sparse_weight_op(x, codes, scale, rows)
    return out


def _one_token(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Sums (B, 16): x is picked by position, so that no zero is multiplied."""
    columns = x.shape[1]
    stored = packing.sparse_values(columns)
    count = packing.units(stored)
    values = packing.slots(codes[:, :count], 4, stored)
    places = packing.slots(codes[:, count:], 2, stored)
    width = count * 2 * packing.UNIT
    quads = F.pad(x, (0, width - columns)).view(count, -1, QUAD)
    terms: Tensor | None = None
    for quad in range(packing.UNIT // 2):
        x0, x1, x2, x3 = quads[:, quad].unsqueeze(2).unbind(1)
        low, high = places[2 * quad], places[2 * quad + 1]
        lower = torch.where(low == 0, x0, torch.where(low == 1, x1, x2))
        upper = torch.where(high == 3, x3, torch.where(high == 2, x2, x1))
        term = _value(values[2 * quad]) * lower
        term = term + _value(values[2 * quad + 1]) * upper
        terms = term if terms is None else terms + term
    assert terms is not None, "a unit without quads"
    wide = scale.float().repeat_interleave(GROUP // (2 * packing.UNIT), dim=1)
    return (terms * wide[:, :count]).sum(1)


@torch.library.custom_op("llama_perf::sparse_weight", mutates_args=())
def sparse_weight_op(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The operator itself: any M, any device."""
    columns = x.shape[1]

    def dequantize(blocks: slice) -> Tensor:
        return _blocks(codes[blocks], scale[blocks], columns)

    return by_unpacked_blocks(x, codes, rows, dequantize)


@sparse_weight_op.register_fake
def _(x: Tensor, _codes: Tensor, _scale: Tensor, rows: int) -> Tensor:
    return x.new_empty((len(x), rows))


@sparse_weight_op.register_kernel("cuda")
def _(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    from llama_perf.kernels.triton.launch_products import product

    return product(x, packed_weight(rows, x.shape[1], codes, scale))


def _blocks(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    """The weight of some blocks, float32 (B, K, 16)."""
    stored = packing.unpack(codes, BITS, packing.sparse_values(columns))
    stored = stored.unflatten(1, (-1, 2))
    wide = scale.float().repeat_interleave(GROUP // QUAD, dim=1)
    values = _value(stored & 15) * wide[:, : columns // QUAD].unsqueeze(2)
    blocks, quads, _, lanes = values.shape
    weight = values.new_zeros((blocks, quads, QUAD, lanes))
    return weight.scatter_(2, (stored >> 4).long(), values).flatten(1, 2)


def _value(code: Tensor) -> Tensor:
    return (code - MIDDLE).to(torch.float32)
