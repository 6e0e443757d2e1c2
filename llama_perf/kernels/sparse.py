"""Products with a 2:4 sparse int4 weight, a scale for each group of 128 along K.

    y[m, n] = sum over q, i of x[m, 4 q + p[n, q, i]] * v[n, q, i] * s[n, q / 32]
    v[n, q, i] = c[n, q, i] & 15, two's complement: -8 to 7
    p[n, q, i] = c[n, q, i] >> 4          p[n, q, 0] > p[n, q, 1]

Of each quad q, four columns, two are stored: i = 0 and 1. `c` are six bits in words of
`packing` (planes of 4 and 2 bits), stored value 2 q + i in the place of a column, so
that a weight takes 3 bits. `s` has 16 bits and lies as the codes do, (B, G, 16), with
G = ceil(K / 128): the last group may be shorter, K is a multiple of 4. Sums are in
float32. The pattern is that of NVIDIA's sparse tensor cores, the format's name from
Sparse-Marlin by Frantar et al. (2024).
"""

from torch import Tensor

from llama_perf.kernels import packing
from llama_perf.kernels.cpu import by_unpacked_blocks
from llama_perf.kernels.weight import SPARSE_GROUP, Packed

BITS = 6
MIDDLE = 8
QUAD = 4


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
    return ((code ^ MIDDLE) - MIDDLE).float()
