"""Products with packed weights in plain torch, for a CPU.

One token: an expression over whole words that `torch.compile` turns into one loop
which reads each word once and unpacks it in registers. Several tokens, or no
compiler, where `many_tokens` does not apply: a stretch of rows at a time is unpacked
into a buffer that fits the cache. Knows codes and how to decode them, not what they
mean.

Legend: M tokens, N rows of the weight, K its columns, B blocks of 16 rows, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels.packing import LANES, slots

# Weights unpacked at a time, as float32 about what a core's second-level cache holds.
_STRETCH = 1 << 18
# Partial sums that fit registers: of more a compiler writes some to memory.
_TOGETHER = 4


def fused_here(x: Tensor) -> bool:
    """Whether `x`, (M, K), is one token on a CPU in code that is being compiled."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and len(x) == 1


def unit_sums(
    x: Tensor,
    packed: Tensor,
    bits: int,
    decode: Callable[[Tensor], Tensor],
    dims: tuple[int, ...],
    *,
    split: tuple[int, ...] = (-1,),
) -> Tensor:
    """Sum of decoded codes times `x`, (1, K), over dimensions `dims`.

    `split` is what the units are unflattened into: dimension 0 is the blocks, then
    those of `split`, the last one the lanes.
    """
    columns = x.shape[1]
    codes = slots(packed, bits, columns)
    width = len(codes) * codes[0].shape[1]
    if width != columns:
        x = F.pad(x, (0, width - columns))
    parts = x.view(-1, len(codes))
    total: Tensor | None = None
    for first in range(0, len(codes), _TOGETHER):
        terms: Tensor | None = None
        for slot in range(first, first + _TOGETHER):
            term = decode(codes[slot]) * parts[:, slot].unsqueeze(1)
            terms = term if terms is None else terms + term
        assert terms is not None, "a unit without slots"
        # The dtype is named: a sum of int32 would be int64.
        partial = terms.unflatten(1, split).sum(dims, dtype=terms.dtype)
        total = partial if total is None else total + partial
    assert total is not None, "a unit without slots"
    return total


def stretches(packed: Tensor, columns: int) -> Iterator[slice]:
    """Slices of blocks, each of about as many weights as a cache holds."""
    step = max(_STRETCH // (columns * LANES), 1)
    for start in range(0, len(packed), step):
        yield slice(start, start + step)


def by_stretches(
    x: Tensor, packed: Tensor, rows: int, dequantize: Callable[[slice], Tensor]
) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in float32.

    `dequantize(blocks)` gives the weight of those blocks, a new float32 (B, K, 16).
    """
    tokens, columns = x.shape
    x = x.float()
    out = x.new_empty((tokens, len(packed) * LANES))
    for blocks in stretches(packed, columns):
        weight = dequantize(blocks)
        target = out[:, blocks.start * LANES : blocks.stop * LANES]
        if tokens == 1:
            target.copy_(weight.mul_(x.view(1, columns, 1)).sum(1).view(1, -1))
        else:
            target.copy_(x @ weight.permute(1, 0, 2).reshape(columns, -1))
    return out[:, :rows]
