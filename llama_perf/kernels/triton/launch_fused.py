"""Launches of the fused kernels: grids, constants, and the calls of a layer's steps.

Imported only where Triton is: on a CUDA device, in its interpreter, or to compile
ahead of time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from llama_perf.devices.device import device_of
from llama_perf.kernels.launch_table import Choice, chosen, launch_key
from llama_perf.kernels.packing import LANES, UNIT, units
from llama_perf.kernels.sparse import kept
from llama_perf.kernels.triton.codes import FLOAT8
from llama_perf.kernels.triton.dependent_launch import may_start_early
from llama_perf.kernels.triton.fused import ADD, GATE, KEEP
from llama_perf.kernels.triton.fused import project as project_kernel
from llama_perf.kernels.triton.fused import project_heads as project_heads_kernel
from llama_perf.kernels.triton.launch_attention import KINDS
from llama_perf.kernels.triton.launch_products import FEW, Launch, few_launch
from llama_perf.kernels.triton.sums import BY_DP4A, WRITTEN_OUT
from llama_perf.kernels.weight import PLAIN, SPARSE, Packed

INTERPRETED = bool(triton.knobs.runtime.interpret)


def fused_launch(
    weight: Packed, tokens: int, *, weights: int = 1, tuned: Choice | None = None
) -> Launch:
    """For `tokens` by one weight, or by two alike: as `tuned`, else by a rule."""
    columns = kept(weight.columns) if weight.format == SPARSE else weight.columns
    rule = few_launch(
        tokens,
        weights * weight.rows,
        columns,
        most_u=_most_units(weight, tokens),
        least_u=4 if weight.format == PLAIN else 16,
    )
    block_u, splits = rule.constants["BLOCK_U"], rule.splits
    if tuned is not None:
        block_u, splits = tuned.block_u, tuned.splits
    steps = -(-units(columns) // block_u)
    each = -(-steps // min(splits, steps))
    splits = -(-steps // each)
    return replace(
        rule,
        grid=(weights * -(-weight.rows // LANES), splits),
        constants={
            "K": weight.columns,
            "FORMAT": weight.format,
            "WORDS": 0 if weight.format == PLAIN else weight.codes.shape[1],
            "BITS": weight.bits,
            "DECODE": weight.decode,
            "GROUP": weight.group,
            "ZERO": weight.zero_kind,
            "DYNAMIC": _dynamic(weight),
            "SPLITS": splits,
            **rule.constants,
            "BLOCK_U": block_u,
            "STEPS": each,
        },
        warps=rule.warps if tuned is None else tuned.warps,
        stages=rule.stages if tuned is None else tuned.stages,
    )


def _dynamic(weight: Packed) -> int:
    if not weight.dynamic:
        return 0
    # The interpreter has no instructions of a card's.
    return int((WRITTEN_OUT if INTERPRETED else BY_DP4A).value)


def _most_units(weight: Packed, tokens: int) -> int:
    if weight.format == PLAIN:
        # Sixteen rows of 256 columns, in floats of two bytes, are 8 KB.
        return 32
    # More sums would spill registers: see `triton_products`; on sm_80 those of units,
    # each with a scale and a zero, too.
    small = 0 < weight.group <= UNIT
    several = weight.decode == FLOAT8.value and tokens > 1
    if weight.format == SPARSE or small or several:
        return 64
    return 128


def launch_here(weight: Packed, tokens: int, *, weights: int = 1) -> Launch:
    """`fused_launch` on the device where the weight is, by its table."""
    tuned = None
    if weight.codes.device.type == "cuda":
        key = launch_key(weight, tokens, weights=weights)
        tuned = chosen(_card_key(weight.codes.device), key)
    return fused_launch(weight, tokens, weights=weights, tuned=tuned)


@cache
def _card_key(device: torch.device) -> str:
    # Each launch asks, and a step has hundreds.
    return device_of(device).key


def _run(kernel: Any, launch: Launch, arguments: tuple[Any, ...], **more: Any) -> None:
    early = may_start_early(arguments[0].device)
    kernel[launch.grid](
        *arguments,
        **more,
        **launch.constants,
        DEPENDENT=early,
        num_warps=launch.warps,
        num_stages=launch.stages,
        **({"launch_pdl": True} if early else {}),
    )


def any_peak(device: torch.device) -> Tensor:
    """The tokens' peaks that an int8dq product gets from the kernel before it.

    Any value does where a product is timed by itself.
    """
    return torch.full((8,), 4.0, device=device).view(torch.int32)


def project(
    x: Tensor,
    weight: Packed,
    arrivals: Tensor,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    second: Packed | None = None,
    residual: Tensor | None = None,
    peak: Tensor | None = None,
    left: Tensor | None = None,
    cleared: Tensor | None = None,
    next_gain: Tensor | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """The product of `x`, (M, K) of at most eight tokens, in x's dtype, (M, N).

    With `gain`, (K,), of x's RMSNorm with `eps`. With `second` it is silu of the first
    product times that with `second`. With `residual`, (M, N), the product is added to
    it in place. `arrivals`, int32, one at least for sixteen rows, are 0 and left so.
    Of activations that a later kernel rounds to int8, int32 (8,) each: `peak` is what
    the kernel in front left of x, `left`, of zeros, gets that of the result, times
    `next_gain` where there is a residual. `cleared`, of 8 or 16, becomes zeros.
    `launch` is how, where it is not to be chosen here.
    """
    x = x.contiguous()
    tokens = len(x)
    assert 1 <= tokens <= FEW, f"{tokens} tokens"
    assert second is None or second.layout == weight.layout, "two kinds of weights"
    weights = 1 if second is None else 2
    launch = launch or launch_here(weight, tokens, weights=weights)
    blocks = -(-weight.rows // LANES)
    assert len(arrivals) >= blocks, f"{len(arrivals)} arrivals for {blocks} blocks"
    shape = (tokens, weight.rows)
    out = x.new_empty(shape) if residual is None else residual
    parts, squares = _scratch(x, launch, (weights, *shape), (weights, tokens, blocks))
    other = weight if second is None else second
    what = GATE if second is not None else KEEP if residual is None else ADD
    _run(
        project_kernel,
        launch,
        (
            x,
            x if gain is None else gain,
            weight.codes,
            weight.scale,
            weight.zero,
            other.codes,
            other.scale,
            other.zero,
            out,
            arrivals if peak is None else peak,
            arrivals if left is None else left,
            arrivals if cleared is None else cleared,
            x if next_gain is None else next_gain,
            parts,
            squares,
            arrivals,
            eps,
            tokens,
            weight.rows,
        ),
        NORM=gain is not None,
        WHAT=what.value,
        PEAKED=peak is not None,
        LEAVES=left is not None,
        CLEARS=0 if cleared is None else cleared.numel(),
    )
    return out


def project_heads(
    x: Tensor,
    weight: Packed,
    arrivals: Tensor,
    *,
    gain: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    length: int,
    heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    peak: Tensor | None = None,
) -> Tensor:
    """Queries (M, heads, D) of `x` (M, K), `length` tokens a sequence; fills the cache.

    See the kernel; `positions` are int64 (length,), or (B, 1) where each sequence has
    its own, and `peak` is as `project` has it.
    """
    x = x.contiguous()
    tokens = len(x)
    assert 1 <= tokens <= FEW, f"{tokens} tokens"
    _, kv_heads, size, width = k_cache.shape
    launch = launch_here(weight, tokens)
    blocks = weight.rows // LANES
    q = x.new_empty((tokens, heads, width))
    parts, squares = _scratch(x, launch, (tokens, weight.rows), (tokens, blocks))
    _run(
        project_heads_kernel,
        launch,
        (
            x,
            gain,
            weight.codes,
            weight.scale,
            weight.zero,
            cos,
            sin,
            positions,
            q,
            k_cache,
            v_cache,
            k_cache if k_scale is None else k_scale,
            v_cache if v_scale is None else v_scale,
            arrivals if peak is None else peak,
            parts,
            squares,
            arrivals,
            eps,
            tokens,
            weight.rows,
            size,
            length,
        ),
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=width,
        BLOCK_D=1 << (width - 1).bit_length(),
        KIND=KINDS[None if k_scale is None else k_cache.dtype],
        RAGGED=positions.ndim == 2,
        PEAKED=peak is not None,
    )
    return q


def _scratch(
    x: Tensor, launch: Launch, parts: tuple[int, ...], squares: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Room for the parts of all splits and their sums of squares, in float32."""
    splits = launch.splits
    made = [
        torch.empty((splits, *shape), dtype=torch.float32, device=x.device)
        for shape in (parts, squares)
    ]
    return made[0], made[1]
