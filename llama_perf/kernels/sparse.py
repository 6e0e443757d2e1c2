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
from llama_perf.kernels.cpu import by_unpacked_blocks
from llama_perf.kernels.weight import SPARSE_GROUP, Packed

BITS = 6
MIDDLE = 8
QUAD = 4


def one_token(x: Tensor, weight: Packed) -> Tensor:
    """See `products`: x is picked by position, so that no zero is multiplied."""
    codes, stored, count = weight.codes, weight.layout.STORED, weight.layout.UNITS
    values = packing.slots(codes[:, :count], 4, stored)
    places = packing.slots(codes[:, count:], 2, stored)
    width = count * 2 * packing.UNIT
    quads = F.pad(x, (0, width - weight.columns)).view(count, -1, QUAD)
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
    wide = weight.scale.float().repeat_interleave(
        SPARSE_GROUP // (2 * packing.UNIT), dim=1
    )
    return (terms * wide[:, :count]).sum(1)


def many_tokens(x: Tensor, weight: Packed) -> Tensor:
    """See `products`."""
    return by_unpacked_blocks(x, weight, blocks)


def blocks(weight: Packed) -> Tensor:
    """See `products`."""
    stored = packing.unpack(weight.codes, BITS, weight.layout.STORED)
    stored = stored.unflatten(1, (-1, 2))
    wide = weight.scale.float().repeat_interleave(SPARSE_GROUP // QUAD, dim=1)
    values = _value(stored & 15) * wide[:, : weight.columns // QUAD].unsqueeze(2)
    count, quads, _, lanes = values.shape
    unpacked = values.new_zeros((count, quads, QUAD, lanes))
    return unpacked.scatter_(2, (stored >> 4).long(), values).flatten(1, 2)


def _value(code: Tensor) -> Tensor:
    return (code - MIDDLE).float()
