"""How the codes of a weight lie in memory: 32-bit words of 16 rows side by side.

A code of b bits is cut into planes of 8, 4, 2 or 1 bits, the low bits in the widest
plane (6 = 4 + 2, 7 = 4 + 2 + 1), so that a word holds whole pieces of consecutive
columns. Word (block, w, lane) of a plane of p bits holds columns 32/p * w and on of
row 16 * block + lane, the first in its lowest bits. Sixteen rows side by side are one
vector register of a CPU and one sector of two of a GPU; a row of K columns takes
b * K / 32 words but for the padding of K to units of 8. Knows no scales.

Legend: N rows, K columns, B = ceil(N / 16) blocks, U = ceil(K / 8) units, W words.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16
UNIT = 8
_PLANES = (8, 4, 2, 1)
# What eight pieces of so many bits fit.
_JOINED = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def planes(bits: int) -> tuple[int, ...]:
    """The planes of a code of `bits`, the one with its lowest bits first."""
    return tuple(plane for plane in _PLANES if bits & plane)


def units(columns: int) -> int:
    """Units of eight columns that hold `columns`."""
    return -(-columns // UNIT)


def plane_words(plane: int, columns: int) -> int:
    """Words that a row takes in one plane."""
    return -(-units(columns) * UNIT * plane // 32)


def words(bits: int, columns: int) -> int:
    """Words that a row takes in all planes."""
    return sum(plane_words(plane, columns) for plane in planes(bits))


def to_lanes(values: Tensor) -> Tensor:
    """(N, ...) to (B, ..., 16), the rows of a block last; missing rows are zeros."""
    padding = -len(values) % LANES
    if padding:
        values = torch.cat([values, values.new_zeros((padding, *values.shape[1:]))])
    blocks: Tensor = values.unflatten(0, (-1, LANES))
    return blocks.movedim(1, -1).contiguous()


def from_lanes(blocks: Tensor, rows: int) -> Tensor:
    """(B, ..., 16) back to (N, ...)."""
    return blocks.movedim(-1, 1).flatten(0, 1)[:rows]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (N, K), integers of 0 to 2**bits - 1, to int32 words (B, W, 16)."""
    columns = codes.shape[1]
    packed, low = [], 0
    for plane in planes(bits):
        width = plane_words(plane, columns) * (32 // plane)
        pieces = ((codes >> low) & (2**plane - 1)).to(torch.uint8)
        packed.append(_joined(F.pad(pieces, (0, width - columns)), plane))
        low += plane
    return to_lanes(torch.cat(packed, dim=1))


def _joined(pieces: Tensor, plane: int) -> Tensor:
    """Bytes with `plane` bits each, (N, 32 / plane * W), as int32 words (N, W)."""
    pieces = pieces.contiguous()
    if plane == 8:
        return pieces.view(torch.int32)
    # Eight bytes at a time: pieces that are neighbours move together, then pairs of
    # them, then both halves.
    eight = pieces.view(torch.int64)
    for count in (1, 2, 4):
        kept = sum(4 ** (count * plane) - 1 << at for at in range(0, 64, 16 * count))
        eight = (eight | eight >> (count * (8 - plane))) & kept
    return eight.to(_JOINED[plane]).view(torch.int32)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Words (B, W, 16) back to int32 codes (B, K, 16)."""
    codes: Any = 0
    for low, plane, part in parts(packed, bits, columns):
        shifts = torch.arange(32 // plane, device=packed.device, dtype=torch.int32)
        shifts = (shifts * plane).view(-1, 1)
        pieces = (part.unsqueeze(2) >> shifts) & (2**plane - 1)
        codes = codes | (pieces.flatten(1, 2)[:, :columns] << low)
    unpacked: Tensor = codes
    return unpacked


def parts(packed: Tensor, bits: int, columns: int) -> Iterator[tuple[int, int, Tensor]]:
    """Each plane: the place of its lowest bit in a code, its bits, its words."""
    low = start = 0
    for plane in planes(bits):
        count = plane_words(plane, columns)
        yield low, plane, packed[:, start : start + count]
        low, start = low + plane, start + count
