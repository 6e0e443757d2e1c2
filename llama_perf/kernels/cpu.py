"""Products with packed weights on a CPU without a compiler, in plain torch.

The codes are multiplied in the order in which the words of `packing` have them, slot by
slot: a word is taken apart by shifts and masks of entire tensors, and the tokens'
columns are put into the same order, which costs little since they are few. Where that
does not apply, some rows at a time are unpacked. Knows codes, not scales.

Legend: M tokens, N rows of the weight, K its columns, U units, B blocks of 16 rows, b
those at a time, W words, S slots of a word, one for each column it holds.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels.packing import LANES, parts
from llama_perf.kernels.weight import Packed

# Weights at a time: as float32 they fit the cache that the cores share. Of those that
# are unpacked, about what a core's second-level cache holds.
_STRETCH = 1 << 20
_UNPACKED = 1 << 18
# Up to so many tokens int8 codes are multiplied in the order of their bytes.
_FEW_TOKENS = 2
# Products of int8 are at most 127 * 128 < 2**14, and float32 counts to 2**24 exactly.
_EXACT_TERMS = 1024
_EACH_BYTE = {1: 0x01010101, 2: 0x03030303, 4: 0x0F0F0F0F}
# The sign of the upper of two bytes side by side.
_UPPER_SIGNS = 0x80008000 - (1 << 32)
_NIBBLES, _UPPER_NIBBLES = 0x0F0F0F0F, 0xF0F0F0F0 - (1 << 32)
_SIGNS = 0x22222222
_TO_NIBBLES = ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333))


def in_slots(x: Tensor, words: int, slots: int) -> Tensor:
    """Tokens (M, K) as (M, S * W); columns that pad the words are zeros."""
    x = F.pad(x, (0, words * slots - x.shape[1]))
    return x.view(-1, words, slots).transpose(1, 2).flatten(1)


def by_blocks(
    tokens: int,
    packed: Tensor,
    step: int,
    multiply: Callable[[slice], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(M, 16 * B), in `dtype`, from `multiply(blocks)`, which returns (b, M, 16)."""
    out = packed.new_empty((tokens, len(packed), LANES), dtype=dtype)
    for start in range(0, len(packed), step):
        blocks = slice(start, start + step)
        out[:, blocks] = multiply(blocks).transpose(0, 1)
    return out.flatten(1)


def by_unpacked_blocks(
    x: Tensor, weight: Packed, unpack: Callable[[Packed], Tensor]
) -> Tensor:
    """`x`, float32 (M, K), times the transposed weight, (M, 16 * B).

    `unpack` gives the weight of some blocks, a new float32 (b, K, 16).
    """
    tokens, columns = x.shape

    def multiply(blocks: slice) -> Tensor:
        values = unpack(weight.of(blocks))
        if tokens == 1:
            return values.mul_(x.view(1, columns, 1)).sum(1, keepdim=True)
        flat = x @ values.permute(1, 0, 2).reshape(columns, -1)
        return flat.view(tokens, len(values), LANES).transpose(0, 1)

    step = max(_UNPACKED // (columns * LANES), 1)
    return by_blocks(tokens, weight.codes, step, multiply)


def product(x: Tensor, values: Tensor, *, exact: bool = False) -> Tensor:
    """Tokens in slots (M, k) times values (b, ..., 16) of as many columns: (b, M, 16).

    An `exact` one, of whole numbers below 2**14, is int32 and has no rounding.
    """
    values = values.view(len(values), x.shape[1], -1)
    expanded = x.expand(len(values), -1, -1)
    if not exact:
        return torch.bmm(expanded, values)
    shape = (len(values), len(x), values.shape[2])
    total = values.new_zeros(shape, dtype=torch.int32)
    for start in range(0, values.shape[1], _EXACT_TERMS):
        terms = slice(start, start + _EXACT_TERMS)
        total += torch.bmm(expanded[..., terms], values[:, terms]).to(torch.int32)
    return total


def int8_sums(x: Tensor, codes: Tensor, *, exact: bool = False) -> Tensor:
    """`x` (M, K) times words of int8 codes (B, W, 16): float32 (M, 16 * B).

    One or two tokens are multiplied with all four bytes of a word, which become float32
    in the order in which they lie: that is several times as fast as every fourth byte.
    A lane has four sums for each slot of the tokens; one of them is used, and the other
    three cost little. An `exact` sum, of int8 `x`, is int32 and has no rounding.
    """
    (tokens, columns), words = x.shape, codes.shape[1]
    arranged = in_slots(x.float(), words, 4)
    space = room(codes, 4, columns)
    few = tokens <= _FEW_TOKENS
    if few:
        space = space.view(-1, words, LANES * 4)
        arranged = arranged.view(tokens * 4, words)

    def multiply(blocks: slice) -> Tensor:
        some = codes[blocks]
        values = space[: len(some)]
        values.copy_(some.view(torch.int8) if few else _pieces(some, torch.int8))
        sums = product(arranged, values, exact=exact)
        if few:
            sums = sums.view(len(values), tokens, 4, LANES, 4)
            sums = sums.diagonal(dim1=2, dim2=4).sum(-1, dtype=sums.dtype)
        return sums

    dtype = torch.int32 if exact else torch.float32
    return by_blocks(tokens, codes, at_a_time(columns), multiply, dtype=dtype)


def float_sums(
    x: Tensor, codes: Tensor, bits: int, values: Callable[..., Tensor]
) -> Tensor:
    """`x` (M, K) times codes of `bits`, as `values` has them: float32 (M, 16 * B).

    `values(*planes, room)` takes the words of some blocks, plane by plane.
    """
    tokens, columns = x.shape
    _, plane_bits, planes = zip(*parts(codes, bits, columns), strict=True)
    slots = 32 // plane_bits[0]
    arranged = in_slots(x, planes[0].shape[1], slots)
    space = room(planes[0], slots, columns)

    def multiply(blocks: slice) -> Tensor:
        some = (words[blocks] for words in planes)
        return product(arranged, values(*some, space))

    return by_blocks(tokens, codes, at_a_time(columns), multiply)


def room(words: Tensor, slots: int, columns: int) -> Tensor:
    """Room for the values of the blocks at a time, float32 (b, S, W, 16).

    Allocated once for all blocks: the system would zero memory of this size each time.
    """
    shape = (min(at_a_time(columns), len(words)), slots, words.shape[1], LANES)
    return words.new_empty(shape, dtype=torch.float32)


def at_a_time(columns: int) -> int:
    """Blocks that fill a stretch."""
    return max(_STRETCH // (columns * LANES), 1)


def plane_values(words: Tensor, plane: int, room: Tensor) -> Tensor:
    """The codes of one plane, words (b, W, 16), as float32 (b, S, W, 16)."""
    values = room[: len(words)]
    per_byte = 8 // plane
    for slot in range(per_byte):
        pieces = words
        if plane < 8:
            pieces = (words >> (plane * slot)).bitwise_and_(_EACH_BYTE[plane])
        values[:, slot::per_byte] = _pieces(pieces, torch.uint8)
    return values


def float8_values(words: Tensor, room: Tensor) -> Tensor:
    """Words of e4m3 codes, (b, W, 16), as float32 (b, 4, W, 16): 2**-8 of their values.

    Sign, exponent and mantissa of a code become those of a float16, whose subnormal
    values are then those of the code. Written to `room`.
    """
    values = room[: len(words)]
    # The lower code of each half of a word, then the upper one.
    lower = ((words & 0x007F007F) << 7) | ((words & 0x00800080) << 8)
    upper = ((words & 0x7F007F00) >> 1) | (words & _UPPER_SIGNS)
    values[:, 0::2] = _pieces(lower, torch.float16)
    values[:, 1::2] = _pieces(upper, torch.float16)
    return values


def fp6_values(low: Tensor, high: Tensor, room: Tensor) -> Tensor:
    """fp6 codes as float32 (b, 8, W, 16), each 2**-12 of its value.

    `low` are the words of the plane of 4 bits, (b, W, 16), `high` those of the plane
    of 2 bits, (b, ceil(W / 2), 16). Sign, exponent and mantissa of a code become
    those of a float16, whose subnormal values are then those of the code.
    """
    values = room[: len(low)]
    # Each word of two bits a code becomes two of four, like those of `low`.
    tops = torch.stack((high & 0xFFFF, (high >> 16) & 0xFFFF), 2).flatten(1, 2)
    tops = tops[:, : low.shape[1]]
    for shift, mask in _TO_NIBBLES:
        tops = (tops | (tops << shift)).bitwise_and_(mask)
    # Each sign back to its code, from the next of four.
    signs = tops & _SIGNS
    tops = (tops ^ signs) | ((signs >> 4) & 0x02220222) | ((signs & 0x00020002) << 12)
    even = (low & _NIBBLES) | ((tops & _NIBBLES) << 4)
    odd = ((low >> 4) & _NIBBLES) | (tops & _UPPER_NIBBLES)
    for slot, codes in enumerate((even, odd)):
        # The lower code of each half of a word, then the upper one.
        lower = ((codes & 0x001F001F) << 8) | ((codes & 0x00200020) << 10)
        upper = (codes & 0x1F001F00) | ((codes & 0x20002000) << 2)
        values[:, slot::4] = _pieces(lower, torch.float16)
        values[:, slot + 2 :: 4] = _pieces(upper, torch.float16)
    return values


def _pieces(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Words (b, W, 16) as pieces of `dtype`: (b, pieces of a word, W, 16)."""
    blocks, count, _ = words.shape
    return words.view(dtype).view(blocks, count, LANES, -1).permute(0, 3, 1, 2)
