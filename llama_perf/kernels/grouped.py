"""Products with codes of 1 to 8 bits, a scale and a zero for each group along K.

    y[m, n] = sum over k of x[m, k] * w[n, k],   g = k / group size
    w[n, k] = (c[n, k] - z[n, g]) * s[n, g]            PACKED zeros
    w[n, k] = (c[n, k] - 8) * s[n, g] + z[n, g]        OFFSET (as tinygemm keeps int4)

`c` are codes in words of `packing`; `s` has 16 bits; `z` is packed in as many bits as
the codes, or has 16 bits, in units of the weight. Scales and zeros lie as the
codes do, 16 rows side by side: (B, G, 16). Sums are in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import cpu, packing
from llama_perf.kernels.weight import OFFSET, PACKED, Packed

MIDDLE = 8.0
_FEW = 32


def many_tokens(x: Tensor, weight: Packed) -> Tensor:
    """See `products`."""
    # Each plane costs a product. For many tokens one product of full codes is cheaper.
    few = len(x) <= _FEW or len(packing.planes(weight.bits)) == 1
    if few and _in_words(weight):
        return _slotwise(x, weight)
    return cpu.by_unpacked_blocks(x, weight, blocks)


def blocks(weight: Packed) -> Tensor:
    """See `products`."""
    codes = packing.unpack(weight.codes, weight.bits, weight.columns)
    values: Tensor = codes.float().unflatten(1, (-1, weight.group))
    wide = weight.scale.float().unsqueeze(2)
    zeros = _stored(weight).float().unsqueeze(2)
    if weight.zero_kind == OFFSET:
        return ((values - MIDDLE) * wide + zeros).flatten(1, 2)
    return ((values - zeros) * wide).flatten(1, 2)


def _in_words(weight: Packed) -> bool:
    """Whether in every plane groups fill words, or words hold full groups."""
    size, columns = weight.group, weight.columns
    for plane in packing.planes(weight.bits):
        per_word = 32 // plane
        fits = packing.plane_words(plane, columns) * per_word == columns
        if per_word % size and (size % per_word or not fits):
            return False
    return True


def _slotwise(x: Tensor, weight: Packed) -> Tensor:
    """The product with groups that fit the words, float32 (M, 16 * B)."""
    tokens, columns = x.shape
    size, bits = weight.group, weight.bits
    by_plane = []
    for low, plane, words in packing.parts(weight.codes, bits, columns):
        arranged = cpu.in_slots(x * 2.0**low, words.shape[1], 32 // plane)
        room = cpu.room(words, 32 // plane, columns)
        by_plane.append((low, plane, words, arranged, room))
    x_sums = x.view(tokens, columns // size, size).sum(2)

    def multiply(blocks: slice) -> Tensor:
        some = weight.of(blocks)
        wide, zeros = some.scale.float(), _stored(some)
        if weight.zero_kind == OFFSET:
            total = torch.matmul(x_sums, zeros.float())
            zeros = torch.full_like(wide, MIDDLE, dtype=torch.int32)
        else:
            total = wide.new_zeros((len(wide), tokens, packing.LANES))
        for low, plane, words, arranged, room in by_plane:
            values = cpu.plane_values(words[blocks], plane, room)
            # Zeros are subtracted before the sums, as in the formula, and plane by
            # plane: terms that are large in both would cost the sum its last digits.
            piece = zeros >> low
            if low + plane < bits:
                piece = piece & (2**plane - 1)
            # (b, groups of a word, their slots, W, 16)
            by_group = values.unflatten(1, (-1, min(size, 32 // plane)))
            by_group -= _of_groups(piece.float(), values, size)
            by_group *= _of_groups(wide, values, size)
            total += cpu.product(arranged, values)
        return total

    return cpu.by_blocks(tokens, weight.codes, cpu.at_a_time(columns), multiply)


def _of_groups(groups: Tensor, values: Tensor, size: int) -> Tensor:
    """A number of each group, (b, G, 16), to be broadcast over `values` by group."""
    slots, words = values.shape[1:3]
    if size > slots:
        return groups.repeat_interleave(size // slots, 1)[:, None, None]
    # A word has one or more groups, the last word perhaps fewer.
    count = slots // size
    groups = F.pad(groups, (0, 0, 0, words * count - groups.shape[1]))
    by_word = groups.view(-1, words, count, packing.LANES).transpose(1, 2)
    return by_word.contiguous().unsqueeze(2)


def _stored(weight: Packed) -> Tensor:
    """The zeros as they are, (B, G, 16)."""
    if weight.zero_kind != PACKED:
        return weight.zero
    return packing.unpack(weight.zero, weight.bits, weight.columns // weight.group)
