"""Launches of the attention kernel: grid, constants, and the operator's call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from llama_perf.kernels import cache_codes
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.triton.attention import FP8, INT8, UNQUANTIZED, attend_in_splits
from llama_perf.kernels.triton.dependent_launch import may_start_early, multiprocessors
from llama_perf.kernels.triton.launch import INTERPRETED, Launch, run

KINDS = {
    None: UNQUANTIZED.value,
    cache_codes.INT8: INT8.value,
    cache_codes.FP8: FP8.value,
}
"""The kernels' KIND, by the dtype of a cache's codes; None has none."""
_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
# Bytes that the second-level cache fetches at once.
LINE = 128
# Programs for each of the card's processors.
_PROGRAMS = 2
# Values of the parts that are joined at a time.
_JOINED = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The tensors of one call: `kv_heads` of the cache with `group` query heads each.

    `positions` are those allocated for a sequence; `kind` is the dtype of the cache's
    codes, None where it is unquantized; with `ragged` each sequence has its own length.
    """

    batch: int
    kv_heads: int
    group: int
    width: int
    positions: int
    kind: torch.dtype | None
    dtype: torch.dtype
    ragged: bool


def launch(
    shape: Shape,
    *,
    prefetch_lines: int = 0,
    writes_peaks: bool = False,
    dependent: bool = False,
) -> Launch:
    """The launch for tensors of `shape`.

    `prefetch_lines` of the next weight are brought into the second-level cache. The
    grid has as many programs as keep the card busy, or as there are stretches of
    positions. With lines to bring, some programs are left for them at any length.
    """
    group, width, dtype = shape.group, shape.width, shape.dtype
    heads = shape.batch * shape.kv_heads
    # A block of float32, or of one row, that is 64 positions long takes all registers.
    block = 32 if group == 1 or dtype == torch.float32 else 64
    blocks = -(-shape.positions // block)
    max_splits = max(_PROGRAMS * multiprocessors() // heads, 1)
    splits = min(max_splits, blocks)
    spare = max(max_splits - splits, 1) if prefetch_lines else 0
    block_d = 1 << (width - 1).bit_length()
    group_rows = 1 << (group - 1).bit_length()
    # Tensor cores take 16 rows; one row is multiplied as it is.
    rows = 1 if group == 1 else max(group_rows, 16)
    unit = 1.0 if shape.kind is None else cache_codes.UNIT[shape.kind]
    wide = rows == 1 or INTERPRETED
    return Launch(
        grid=(heads, splits + spare),
        constants={
            "HEADS": shape.kv_heads,
            "LINES": prefetch_lines,
            "WRITES_PEAKS": writes_peaks,
            "DEPENDENT": dependent,
            "RAGGED": shape.ragged,
            "GROUP": group,
            "D": width,
            "KIND": KINDS[shape.kind],
            # The interpreter has no products of bfloat16.
            "DTYPE": tl.float32 if wide else _TYPES[dtype],
            # exp2 stands for exp.
            "SCALE": unit * width**-0.5 * 1.4426950408889634,
            "V_SCALE": unit,
            "ROWS": rows,
            "GROUP_ROWS": group_rows,
            "BLOCK": block,
            "BLOCK_D": block_d,
            "SPLITS": splits,
            # The interpreter of Triton 3.6 needs a bound that is known.
            "STEPS": -(-blocks // splits) if INTERPRETED else 0,
            "TOGETHER": max(_JOINED // (group_rows * block_d), 1),
        },
        warps=8 if group > 1 and dtype == torch.float32 else 4,
        # Two blocks of codes on their way to float32 would spill.
        stages=1 if dtype == torch.float32 and shape.kind is not None else 2,
    )


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
    batch, kv_heads, positions, width = cache.k.shape
    group = q.shape[2] // kv_heads
    dependent = may_start_early(q.device)
    # The interpreter has no such instruction.
    lines = 0 if prefetch is None or INTERPRETED else prefetch.nbytes // LINE
    how = launch(
        Shape(
            batch=batch,
            kv_heads=kv_heads,
            group=group,
            width=width,
            positions=positions,
            kind=cache.kind,
            dtype=q.dtype,
            ragged=len(filled) > 1,
        ),
        prefetch_lines=lines,
        writes_peaks=peaks_out is not None,
        dependent=dependent,
    )
    splits = how.constants["SPLITS"]
    q = q.contiguous()
    out = torch.empty_like(q)
    parts = q.new_empty((batch * kv_heads, splits, group, width), dtype=torch.float32)
    sums = q.new_empty((2, batch * kv_heads, splits, group), dtype=torch.float32)
    arguments = (
        q,
        cache.k,
        cache.v,
        # Not read where nothing is quantized.
        cache.k if cache.k_scale is None else cache.k_scale,
        cache.v if cache.v_scale is None else cache.v_scale,
        split_counter,
        filled,
        parts,
        sums,
        out,
        split_counter if peaks_out is None else peaks_out,
        split_counter if prefetch is None else prefetch.view(torch.int32),
        positions,
    )
    run(attend_in_splits, how, arguments, dependent=dependent)
    return out
