"""A share of a packed weight: some of its rows, and some columns in whole groups.

The codes of the rows that it has are unpacked, cut and packed again, so that a share
may begin and end within the sixteen rows of a block. Knows no scheme.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.kernels.packing import LANES, from_lanes, pack, to_lanes, unpack
from llama_perf.kernels.weight import PACKED, SPARSE, SPARSE_GROUP, Packed

Range = tuple[int, int]


def share(
    packed: Packed, rows: Sequence[Range], columns: Range | None = None
) -> Packed:
    """The rows of `rows`, side by side, and the columns of `columns`, or all.

    Both are (start, end). Raises SpecError where columns are no whole groups.
    """
    first, last = columns or (0, packed.columns)
    group = SPARSE_GROUP if packed.format == SPARSE else packed.group or 1
    if first % group or (last % group and last != packed.columns):
        problem = f"K = {first} to {last} of {packed.columns} are not allowed"
        need = f"columns are cut at multiples of the group size, {group}"
        raise SpecError("columns", (first, last), f"{problem}; {need}")
    layout, halves = packed.layout, 2 if packed.format == SPARSE else 1
    groups = slice(first // group, -(-last // group))
    codes = _rows(packed.codes, rows, bits=packed.bits, columns=layout.STORED)
    codes = pack(codes[:, first // halves : last // halves], packed.bits)
    scale = _rows(packed.scale, rows)
    if scale.ndim > 1:
        scale = scale[:, groups]
    zero = scale = to_lanes(scale)
    if packed.zero_kind == PACKED:
        zeros = _rows(packed.zero, rows, bits=packed.bits, columns=layout.GROUPS)
        zero = pack(zeros[:, groups], packed.bits)
    elif packed.zero_kind:
        zero = to_lanes(_rows(packed.zero, rows)[:, groups])
    count = sum(end - start for start, end in rows)
    packed = replace(packed, codes=codes, scale=scale, zero=zero)
    return replace(packed, rows=count, columns=last - first)


def _rows(
    blocks: Tensor, rows: Sequence[Range], *, bits: int = 0, columns: int = 0
) -> Tensor:
    """Some rows of what lies in blocks; of packed codes, with `bits`, unpacked."""
    parts = []
    for start, end in rows:
        first, last = start // LANES, -(-end // LANES)
        part = blocks[first:last]
        if bits:
            part = unpack(part, bits, columns)
        wide = from_lanes(part, (last - first) * LANES)
        parts.append(wide[start - first * LANES : end - first * LANES])
    return torch.cat(parts)
