"""Reads the int4 codes that torchao packs for CPUs; torchao has no function for it.

torch packs the codes for the vector instructions of the processor, in blocks of rows:
a byte holds the codes of two rows of a block, in the same column. Which rows share a
byte is found by packing a known weight.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# Rows of a block, and whether a byte of a whole block holds rows of its two halves
# (i and i + block / 2) or neighbours (2i and 2i + 1).
_LAYOUTS = ((64, True), (32, True), (32, False), (16, False))

# Rows that are unpacked at a time: whole blocks of every layout, and few enough that
# what lies between stays in the processor's cache.
_STRETCH = 512


def is_opaque(weight: Tensor) -> bool:
    """Whether `weight` is packed so. Does not import torchao's prototypes."""
    return type(weight).__name__ == "Int4OpaqueTensor"


def dequantized(weight: Any) -> Tensor:
    """The float32 weight (N, K) of an `Int4OpaqueTensor`.

    Raises NotImplementedError for a layout that is not known.
    """
    if weight.act_mapping_type is not None or weight.act_pre_scale is not None:
        raise NotImplementedError("int4 weights with quantized or scaled activations")
    block, halves = _layout()
    rows, columns = weight.shape
    out = torch.empty(rows, columns)
    scales, zeros = weight.scale_and_zero.float().transpose(0, 1).unsqueeze(2).unbind(3)
    for first in range(0, rows, _STRETCH):
        part = slice(first, first + _STRETCH)
        codes = _unpacked(weight.qdata[part], columns, block=block, halves=halves)
        groups = out[part].view(len(codes), -1, weight.block_size[1])
        groups.copy_(codes.view_as(groups)).sub_(8)
        groups.mul_(scales[part]).add_(zeros[part])
    return out


@cache
def _layout() -> tuple[int, bool]:
    """The layout of this processor, found by packing a known weight."""
    # Two whole blocks, and 16 rows that fill none.
    seeded = torch.Generator().manual_seed(0)
    known = torch.randint(16, (144, 64), generator=seeded, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(known, 1)
    for block, halves in _LAYOUTS:
        if torch.equal(_unpacked(packed, 64, block=block, halves=halves), known):
            return block, halves
    raise NotImplementedError("an unknown layout of packed int4 weights")


def _unpacked(packed: Tensor, columns: int, *, block: int, halves: bool) -> Tensor:
    """Codes (N, K) of bytes (N, K / 2): those of whole blocks, then the rest."""
    data = packed.flatten()
    rows = 2 * len(data) // columns
    in_blocks = rows - rows % block
    codes = data.new_empty((rows, columns))
    for start, end, size, cut in (
        (0, in_blocks, block, halves),
        (in_blocks, rows, rows - in_blocks, False),
    ):
        if start == end:
            continue
        part = data[start * columns // 2 : end * columns // 2]
        part = part.view(-1, columns, size // 2)
        low, high = part & 15, part >> 4
        both = torch.cat((low, high), -1) if cut else torch.stack((low, high), -1)
        both = both.view(-1, columns, size)
        codes[start:end].view(-1, size, columns).copy_(both.transpose(1, 2))
    return codes
