"""The random numbers of the kernel that chooses a token. Needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llama_perf.kernels.triton.sampling import exponential


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types.
def draw(out, seed, count, V, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Draw with as many programs and sequences as `choose`, float32 (sequences, V)."""
    part, sequence = tl.program_id(0), tl.program_id(1)
    number = tl.load(count).to(tl.int32)
    drawn = exponential(tl.load(seed), part, sequence, number, BLOCK)
    column = part * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + sequence * V + column, drawn, mask=column < V)


def exponentials(
    seed: Tensor, count: int, shape: torch.Size, *, block: int = 2048
) -> Tensor:
    """What the token at `count` is drawn by, float32 (B, V)."""
    out = seed.new_empty(shape, dtype=torch.float32)
    parts = -(-shape[1] // block)
    draw[parts, shape[0]](
        out, seed, torch.full_like(seed, count), shape[1], BLOCK=block, num_warps=8
    )
    return out
