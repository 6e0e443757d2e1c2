"""Launches of the attention kernel: grid, constants, and the operator's call.

Imported only where Triton is: on a CUDA device, in its interpreter, or to compile
ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llama_perf.kernels import cache_codes
from llama_perf.kernels.triton.attention import FP8, INT8, PLAIN, attend_in_splits
from llama_perf.kernels.triton.dependent_launch import may_start_early, multiprocessors

INTERPRETED = bool(triton.knobs.runtime.interpret)
KINDS = {None: PLAIN.value, cache_codes.INT8: INT8.value, cache_codes.FP8: FP8.value}
"""The kernels' KIND, by the dtype of a cache's codes; None has none."""
_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
# Bytes that the second-level cache fetches at once.
LINE = 128
# For each of the card's processors.
_PROGRAMS = 2
# Of the parts that are joined, values held at a time.
_JOINED = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How the kernel is started: its grid, its constants and its warps."""

    grid: tuple[int, int]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2


def launch(
    *,
    batch: int,
    heads: int,
    group: int,
    width: int,
    positions: int,
    kind: torch.dtype | None,
    dtype: torch.dtype,
    ragged: bool,
    lines: int = 0,
    leaves: bool = False,
    early: bool = False,
) -> Launch:
    """For queries of `dtype`; `positions` are those allocated, None is no kind.

    `lines` are those asked for ahead; `leaves` and `early` are the kernel's LEAVES and
    DEPENDENT. A grid has
    as many programs as keep the card busy, or as there are stretches of positions.
    Where lines are asked for, some are left for them whatever is filled.
    """
    # A block of float32, or of one row, that is 64 positions long takes all registers.
    block = 32 if group == 1 or dtype == torch.float32 else 64
    blocks = -(-positions // block)
    most = max(_PROGRAMS * multiprocessors() // (batch * heads), 1)
    splits = min(most, blocks)
    spare = max(most - splits, 1) if lines else 0
    block_d = 1 << (width - 1).bit_length()
    group_rows = 1 << (group - 1).bit_length()
    # Tensor cores take 16 rows; one row is multiplied as it is.
    rows = 1 if group == 1 else max(group_rows, 16)
    unit = 1.0 if kind is None else cache_codes.UNIT[kind]
    wide = rows == 1 or INTERPRETED
    return Launch(
        grid=(batch * heads, splits + spare),
        constants={
            "HEADS": heads,
            "LINES": lines,
            "LEAVES": leaves,
            "DEPENDENT": early,
            "RAGGED": ragged,
            "GROUP": group,
            "D": width,
            "KIND": KINDS[kind],
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
        stages=1 if dtype == torch.float32 and kind is not None else 2,
    )


def split_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    arrivals: Tensor,
    filled: Tensor,
    *,
    ahead: Tensor | None = None,
    left: Tensor | None = None,
) -> Tensor:
    """See `cached_attention.decode_attention`.

    `ahead` is the weight that the next kernel reads: brought into the second-level
    cache by programs that have no positions to attend to. `left`, int32 (8,) of zeros,
    gets the peak of each sequence, as `fused_launch.project` leaves them.
    """
    batch, heads, positions, width = k_cache.shape
    group = q.shape[2] // heads
    early = may_start_early(q.device)
    # The interpreter asks nobody.
    lines = 0 if ahead is None or INTERPRETED else ahead.nbytes // LINE
    chosen = launch(
        batch=batch,
        heads=heads,
        group=group,
        width=width,
        positions=positions,
        kind=None if k_scale is None else k_cache.dtype,
        dtype=q.dtype,
        ragged=len(filled) > 1,
        lines=lines,
        leaves=left is not None,
        early=early,
    )
    splits = chosen.constants["SPLITS"]
    q = q.contiguous()
    out = torch.empty_like(q)
    parts = q.new_empty((batch * heads, splits, group, width), dtype=torch.float32)
    sums = q.new_empty((2, batch * heads, splits, group), dtype=torch.float32)
    attend_in_splits[chosen.grid](
        q,
        k_cache,
        v_cache,
        # Not read where nothing is quantized.
        k_cache if k_scale is None else k_scale,
        v_cache if v_scale is None else v_scale,
        arrivals,
        filled,
        parts,
        sums,
        out,
        arrivals if left is None else left,
        arrivals if ahead is None else ahead.view(torch.int32),
        positions,
        **chosen.constants,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        **({"launch_pdl": True} if early else {}),
    )
    return out
