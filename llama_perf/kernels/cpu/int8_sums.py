"""Sums of products with int8 codes in plain torch, without a compiler.

Several tokens are multiplied slot by slot, as in `many_tokens`. One or two tokens are
multiplied with all four bytes of a word, which become float32 in the order in which
they lie: that is several times as fast as every fourth byte. A lane has four sums for
each slot of the tokens; one of them is used, and the other three cost little.

Legend: M tokens, K columns of the weight, B blocks of 16 rows, b those at a time, W
words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.kernels.cpu import many_tokens
from llama_perf.kernels.packing import LANES

_SLOTS = 4
_FEW_TOKENS = 2
# Products are at most 127 * 128 < 2**14, and float32 counts to 2**24 exactly.
_EXACT_TERMS = 1024


def int8_sums(x: Tensor, codes: Tensor, *, exact: bool = False) -> Tensor:
    """`x` (M, K) times words of int8 codes (B, W, 16): float32 (M, 16 * B).

    An `exact` sum, of int8 `x`, is int32 and has no rounding.
    """
    tokens, columns = x.shape
    words = codes.shape[1]
    arranged = many_tokens.in_slots(x.float(), words, _SLOTS)
    room = many_tokens.room(codes, _SLOTS, columns)
    if tokens <= _FEW_TOKENS:
        room = room.view(-1, words, LANES * _SLOTS)
        by_slot = arranged.view(tokens * _SLOTS, words)

        def multiply(blocks: slice) -> Tensor:
            values = room[: len(codes[blocks])]
            values.copy_(codes[blocks].view(torch.int8))
            sums = _product(by_slot, values, exact=exact)
            sums = sums.view(len(values), tokens, _SLOTS, LANES, _SLOTS)
            return sums.diagonal(dim1=2, dim2=4).sum(-1, dtype=sums.dtype)

    else:

        def multiply(blocks: slice) -> Tensor:
            values = many_tokens.signed_values(codes[blocks], room)
            return _product(arranged, values.flatten(1, 2), exact=exact)

    dtype = torch.int32 if exact else torch.float32
    return many_tokens.by_blocks(tokens, codes, columns, multiply, dtype=dtype)


def _product(x: Tensor, values: Tensor, *, exact: bool) -> Tensor:
    """`x` (m, k) times `values` (b, k, n): (b, m, n), in int32 where `exact`."""
    expanded = x.expand(len(values), -1, -1)
    if not exact:
        return torch.bmm(expanded, values)
    shape = (len(values), len(x), values.shape[2])
    total = values.new_zeros(shape, dtype=torch.int32)
    for start in range(0, values.shape[1], _EXACT_TERMS):
        terms = slice(start, start + _EXACT_TERMS)
        total += torch.bmm(expanded[..., terms], values[:, terms]).to(torch.int32)
    return total
