"""Launches of the attention kernel: grid, constants, and the operator's call."""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from llama_perf.kernels import cache_codes
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.triton.attention import FP8, INT8, UNQUANTIZED, attend_in_splits
from llama_perf.kernels.triton.launch import INTERPRETED, Launch, multiprocessors, run

KINDS = {None: UNQUANTIZED.value, torch.int8: INT8.value, torch.uint8: FP8.value}
"""The kernels' KIND, by the dtype of a cache's codes; None has none."""
_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
# Bytes that the second-level cache fetches at once.
_LINE = 128
# Programs for each of the card's processors.
_PROGRAMS = 2
# Values of the parts that are joined at a time.
_JOINED = 4096


class Attention(NamedTuple):
    """The constants of `attend_block`.

    Each of HEADS of the cache has GROUP queries, D wide; ROWS, GROUP_ROWS and BLOCK_D
    are padded. A program takes BLOCK positions at a time, in STEPS if that is not 0, or
    as many as the length asks for. The last one joins the parts of TOGETHER of SPLITS
    at a time. Products are in DTYPE, SCALE multiplies scores and V_SCALE the result.
    LINES of the next weight are prefetched. With RAGGED each sequence has a length. The
    last WINDOW positions are visible, all if that is 0.
    """

    HEADS: int
    GROUP: int
    D: int
    KIND: int
    ROWS: int
    GROUP_ROWS: int
    BLOCK: int
    BLOCK_D: int
    SCALE: float
    V_SCALE: float
    SPLITS: int
    STEPS: int
    STAGES: int
    TOGETHER: int
    LINES: int
    RAGGED: bool
    WINDOW: int
    DTYPE: Any


def split_attention(
    q: Tensor,
    cache: CachedTensors,
    split_counter: Tensor,
    filled: Tensor,
    *,
    window: int = 0,
    prefetch: Tensor | None = None,
    peaks_out: Tensor | None = None,
) -> Tensor:
    """See `attention.decode_attention`.

    `prefetch` is the weight that the next kernel reads. Programs that have no positions
    to attend to bring it into the second-level cache. `peaks_out`, int32 (8,) of zeros,
    gets the peak of each sequence, as `launch_fused.Peaks` has them.
    """
    launch = attention_launch(q, cache, len(filled) > 1, prefetch, window=window)
    heads, how = launch.grid[0], launch.constants["HOW"]
    shape = (heads, how.SPLITS, how.GROUP)
    q = q.contiguous()
    out = torch.empty_like(q)
    parts = q.new_empty((*shape, how.D), dtype=torch.float32)
    sums = q.new_empty((2, *shape), dtype=torch.float32)
    next_weight = None if prefetch is None else prefetch.view(torch.int32)
    inputs = (q, *cache.pointers, split_counter, filled)
    outputs = (parts, sums, out, peaks_out, next_weight, cache.k.shape[2], heads)
    run(attend_in_splits, launch, inputs + outputs)
    return out


def attention_launch(
    q: Tensor,
    cache: CachedTensors,
    ragged: bool,
    prefetch: Tensor | None,
    *,
    window: int = 0,
    programs: int = 0,
) -> Launch:
    """For queries (B, 1, heads, D); `programs` 0 asks for two for each processor."""
    batch, kv_heads, positions, width = cache.k.shape
    group, heads, kind = q.shape[2] // kv_heads, batch * kv_heads, cache.kind
    wide = q.dtype == torch.float32
    # A block of float32, or of one row, that is 64 positions long takes all registers.
    block = 32 if group == 1 or wide else 64
    # A window may begin and end within a block.
    most = min(positions, window + block) if window else positions
    blocks = -(-most // block)
    # As many programs as keep the card busy, or as there are stretches of positions.
    # With lines of the next weight to bring, some are left for them at any length. The
    # interpreter has no such instruction.
    lines = 0 if prefetch is None or INTERPRETED else prefetch.nbytes // _LINE
    max_splits = max((programs or _PROGRAMS * multiprocessors()) // heads, 1)
    splits = min(max_splits, blocks)
    spare = max(max_splits - splits, 1) if lines else 0
    block_d, group_rows = next_power_of_2(width), next_power_of_2(group)
    # Tensor cores take 16 rows; one row is multiplied as it is.
    rows = 1 if group == 1 else max(group_rows, 16)
    unit = 1.0 if kind is None else cache_codes.UNIT[kind]
    # The interpreter has no products of bfloat16.
    multiplied = tl.float32 if rows == 1 or INTERPRETED else _TYPES[q.dtype]
    how = Attention(
        HEADS=kv_heads,
        GROUP=group,
        D=width,
        KIND=KINDS[kind],
        ROWS=rows,
        GROUP_ROWS=group_rows,
        BLOCK=block,
        BLOCK_D=block_d,
        # The kernel uses exp2, so the scale has a factor of log2(e).
        SCALE=unit * width**-0.5 * 1.4426950408889634,
        V_SCALE=unit,
        SPLITS=splits,
        # The interpreter of Triton 3.6 needs a bound that is known.
        STEPS=-(-blocks // splits) if INTERPRETED else 0,
        # Two blocks of codes on their way to float32 would spill.
        STAGES=1 if wide and kind is not None else 2,
        TOGETHER=max(_JOINED // (group_rows * block_d), 1),
        LINES=lines,
        RAGGED=ragged,
        WINDOW=window,
        DTYPE=multiplied,
    )
    return Launch(
        grid=(heads, splits + spare),
        constants={"HOW": how},
        warps=8 if group > 1 and wide else 4,
        stages=how.STAGES,
    )
