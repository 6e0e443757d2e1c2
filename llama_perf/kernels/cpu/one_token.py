"""The product of one token with a packed weight in compiled torch, for a CPU.

An expression over whole words that `torch.compile` turns into one loop which reads each
word once and unpacks it in registers. Knows codes and how to decode them, not what they
mean.

Legend: K columns of the weight, U units.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels.packing import slots


def fused_here(x: Tensor) -> bool:
    """Whether `x`, (M, K), is one token on a CPU in code that is being compiled."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and len(x) == 1


def unit_sums(
    x: Tensor,
    packed: Tensor,
    bits: int,
    decode: Callable[[Tensor], Tensor],
    split: tuple[int, ...] = (-1,),
) -> Tensor:
    """Decoded codes times `x`, (1, K), summed over units: (B, 16).

    `split` is what the units are unflattened into; the sums are over its last.
    """
    codes, columns = slots(packed, bits, x.shape[1]), x.shape[1]
    width = len(codes) * codes[0].shape[1]
    if width != columns:
        x = F.pad(x, (0, width - columns))
    parts = x.view(-1, len(codes))
    sums: list[Tensor] = []
    # Four partial sums fit registers: of more a compiler writes some to memory.
    for first in range(0, len(codes), 4):
        a, b, c, d = (
            decode(codes[slot]) * parts[:, slot].unsqueeze(1)
            for slot in range(first, first + 4)
        )
        terms = (a + b + c + d).unflatten(1, split)
        # The dtype is named: a sum of int32 would be int64.
        sums.append(terms.sum(len(split), dtype=terms.dtype))
    return sums[0] if len(sums) == 1 else sums[0] + sums[1]
