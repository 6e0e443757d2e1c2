"""Launches of the attention kernel: grid, constants, and the operator's call."""

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


def split_attention(
    q: Tensor,
    cache: CachedTensors,
    split_counter: Tensor,
    filled: Tensor,
    *,
    prefetch: Tensor | None = None,
    peaks_out: Tensor | None = None,
) -> Tensor:
    """See `attention.decode_attention`.

    `prefetch` is the weight that the next kernel reads. Programs that have no positions
    to attend to bring it into the second-level cache. `peaks_out`, int32 (8,) of zeros,
    gets the peak of each sequence, as `launch_fused.Peaks` has them.
    """
    launch = attention_launch(q, cache, len(filled) > 1, prefetch)
    heads, constants = launch.grid[0], launch.constants
    shape = (heads, constants["SPLITS"], constants["GROUP"])
    q = q.contiguous()
    out = torch.empty_like(q)
    parts = q.new_empty((*shape, constants["D"]), dtype=torch.float32)
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
    programs: int = 0,
) -> Launch:
    """For queries (B, 1, heads, D); `programs` 0 asks for two for each processor."""
    batch, kv_heads, positions, width = cache.k.shape
    group, heads, kind = q.shape[2] // kv_heads, batch * kv_heads, cache.kind
    wide = q.dtype == torch.float32
    # A block of float32, or of one row, that is 64 positions long takes all registers.
    block = 32 if group == 1 or wide else 64
    blocks = -(-positions // block)
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
    cached = {"HEADS": kv_heads, "GROUP": group, "D": width, "KIND": KINDS[kind]}
    tile = {"ROWS": rows, "GROUP_ROWS": group_rows, "BLOCK": block, "BLOCK_D": block_d}
    # The kernel uses exp2, so the scale has a factor of log2(e).
    scales = {"SCALE": unit * width**-0.5 * 1.4426950408889634, "V_SCALE": unit}
    # The interpreter of Triton 3.6 needs a bound that is known.
    steps = -(-blocks // splits) if INTERPRETED else 0
    together = max(_JOINED // (group_rows * block_d), 1)
    joined = {"SPLITS": splits, "STEPS": steps, "TOGETHER": together}
    how = {"LINES": lines, "RAGGED": ragged, "DTYPE": multiplied}
    return Launch(
        grid=(heads, splits + spare),
        constants=cached | tile | scales | joined | how,
        warps=8 if group > 1 and wide else 4,
        # Two blocks of codes on their way to float32 would spill.
        stages=1 if wide and kind is not None else 2,
    )
