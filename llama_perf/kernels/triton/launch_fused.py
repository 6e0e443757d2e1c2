"""Launches of the fused kernels: grids, constants, and the calls of a layer's steps."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton import next_power_of_2

from llama_perf.devices.device import device_of
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.launch_table import Choice, chosen, launch_key
from llama_perf.kernels.packing import LANES, UNIT, units
from llama_perf.kernels.triton import launch_products
from llama_perf.kernels.triton.fused import ADD, GATE, KEEP
from llama_perf.kernels.triton.fused import project as project_kernel
from llama_perf.kernels.triton.fused import project_heads as project_heads_kernel
from llama_perf.kernels.triton.launch import INTERPRETED, Launch, run
from llama_perf.kernels.triton.launch_attention import KINDS
from llama_perf.kernels.triton.sums import BY_DP4A, WRITTEN_OUT
from llama_perf.kernels.weight import FLOATS, Packed


def fused_launch(
    weight: Packed, tokens: int, *, weights: int = 1, tuned: Choice | None = None
) -> Launch:
    """For `tokens` by one weight, or by two alike: as `tuned`, else by a rule."""
    columns = launch_products.stored_columns(weight)
    floats = weight.format == FLOATS
    # Sixteen rows of 256 columns, in floats of two bytes, are 8 KB. More sums would
    # spill registers on sm_80 where units each have a scale and a zero.
    small = 0 < weight.group <= UNIT
    most = 64 if small else launch_products.max_units(weight, tokens)
    rule = launch_products.few_launch(
        tokens,
        weights * weight.rows,
        columns,
        max_units=32 if floats else most,
        min_units=4 if floats else 16,
    )
    block_u, splits = rule.constants["BLOCK_U"], rule.splits
    if tuned is not None:
        block_u, splits = tuned.block_u, tuned.splits
        rule = replace(rule, warps=tuned.warps, stages=tuned.stages)
    steps = -(-units(columns) // block_u)
    split_steps = -(-steps // min(splits, steps))
    splits = -(-steps // split_steps)
    # The interpreter has no dp4a.
    dynamic = (WRITTEN_OUT if INTERPRETED else BY_DP4A).value if weight.dynamic else 0
    how = {"FORMAT": weight.format, "DYNAMIC": dynamic}
    parts = {"BLOCK_U": block_u, "STEPS": split_steps, "SPLITS": splits}
    return replace(
        rule,
        grid=(weights * -(-weight.rows // LANES), splits),
        constants=rule.constants | weight.constants | how | parts,
    )


def launch_here(weight: Packed, tokens: int, *, weights: int = 1) -> Launch:
    """`fused_launch` on the device where the weight is, by its table."""
    tuned = None
    if weight.codes.device.type == "cuda":
        key = launch_key(weight, tokens, weights=weights)
        tuned = chosen(_card_key(weight.codes.device), key)
    return fused_launch(weight, tokens, weights=weights, tuned=tuned)


@cache
def _card_key(device: torch.device) -> str:
    # Every launch asks for it, and a step has hundreds.
    return device_of(device).key


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """The RMSNorm of a product's input: `weight` (K,)."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """The tokens' largest magnitudes, which int8dq products need to round to int8.

    Each tensor is int32 (8,), the bits of float32. `read` has those of the input, which
    the kernel in front wrote. `written`, zeros before, gets those of the result, times
    `next_norm_weight` where there is a residual. `cleared`, (8,) or (16,), becomes
    zeros. None: not read, not written, not cleared.
    """

    read: Tensor | None = None
    written: Tensor | None = None
    cleared: Tensor | None = None
    next_norm_weight: Tensor | None = None


NO_PEAKS = Peaks()


def any_peaks(device: torch.device) -> Peaks:
    """Peaks to read where an int8dq product is timed by itself: any value will do."""
    return Peaks(read=torch.full((8,), 4.0, device=device).view(torch.int32))


@dataclass(frozen=True, kw_only=True, slots=True)
class Placing:
    """Where tokens stand: `length` tokens a sequence, at int64 `positions`.

    Positions are (length,), or (B, 1) where each sequence has its own; `cos` and `sin`
    are their rotary angles', float32 (positions, D / 2).
    """

    positions: Tensor
    cos: Tensor
    sin: Tensor
    length: int


def project(
    x: Tensor,
    weight: Packed | tuple[Packed, Packed],
    split_counter: Tensor,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    peaks: Peaks = NO_PEAKS,
    launch: Launch | None = None,
) -> Tensor:
    """The product of `x`, (M, K) of at most eight tokens, in x's dtype, (M, N).

    With `norm` it is the product of the normalized x. With `residual`, (M, N), the
    product is added to that in place. `split_counter`, int32 zeros, at least one for
    sixteen rows, is left zeros. `launch` is how, where the table is not to be asked.
    Two weights are a gate and what it gates: see `project_gated`.
    """
    weights = (weight,) if isinstance(weight, Packed) else weight
    x, first = x.contiguous(), weights[0]
    tokens, blocks, products = len(x), -(-first.rows // LANES), len(weights)
    assert 1 <= tokens <= launch_products.FEW, f"{tokens} tokens"
    assert len(split_counter) >= blocks, f"{len(split_counter)} counters for {blocks}"
    launch = launch or launch_here(first, tokens, weights=products)
    out = x.new_empty((tokens, first.rows)) if residual is None else residual
    what = GATE if products > 1 else KEEP if residual is None else ADD
    shape = (launch.splits, products, tokens)
    parts = x.new_empty((*shape, first.rows), dtype=torch.float32)
    squares = x.new_empty((*shape, blocks), dtype=torch.float32)
    norm_weight, eps = (x, 0.0) if norm is None else (norm.weight, norm.eps)
    # Pointers that the kernel does not read are any of the right dtype.
    places = (peaks.read, peaks.written, peaks.cleared)
    peak_places = [split_counter if place is None else place for place in places]
    next_norm_weight = x if peaks.next_norm_weight is None else peaks.next_norm_weight
    inputs = (x, norm_weight, *first.tensors, *weights[-1].tensors)
    outputs = (out, *peak_places, next_norm_weight, parts, squares, split_counter)
    run(
        project_kernel,
        launch,
        (*inputs, *outputs, eps, tokens, first.rows),
        NORM=norm is not None,
        WHAT=what.value,
        READS_PEAKS=peaks.read is not None,
        WRITES_PEAKS=peaks.written is not None,
        CLEARED_PEAKS=0 if peaks.cleared is None else peaks.cleared.numel(),
    )
    return out


def project_gated(
    x: Tensor, gate: Packed, up: Packed, split_counter: Tensor, **more: Any
) -> Tensor:
    """As `project`: silu of the product with `gate` times the product with `up`."""
    assert gate.layout == up.layout, "two kinds of weights"
    return project(x, (gate, up), split_counter, **more)


def project_heads(
    x: Tensor,
    weight: Packed,
    split_counter: Tensor,
    *,
    norm: Norm,
    placing: Placing,
    cache: CachedTensors,
    peaks_in: Tensor | None = None,
) -> Tensor:
    """Queries (M, heads, D) of `x` (M, K); writes keys and values into the cache.

    See the kernel; `peaks_in` is as `Peaks.read`.
    """
    x, tokens, rows = x.contiguous(), len(x), weight.rows
    assert 1 <= tokens <= launch_products.FEW, f"{tokens} tokens"
    _, kv_heads, size, width = cache.k.shape
    heads = rows // width - 2 * kv_heads
    launch = launch_here(weight, tokens)
    q = x.new_empty((tokens, heads, width))
    parts = x.new_empty((launch.splits, tokens, rows), dtype=torch.float32)
    squares = x.new_empty((launch.splits, tokens, rows // LANES), dtype=torch.float32)
    peaks = split_counter if peaks_in is None else peaks_in
    inputs = (x, norm.weight, *weight.tensors, placing.cos, placing.sin)
    outputs = (placing.positions, q, *cache.pointers, peaks)
    room = (parts, squares, split_counter)
    sizes = (norm.eps, tokens, rows, size, placing.length)
    shape = {"HEADS": heads, "KV_HEADS": kv_heads, "D": width}
    run(
        project_heads_kernel,
        launch,
        (*inputs, *outputs, *room, *sizes),
        **shape,
        BLOCK_D=next_power_of_2(width),
        KIND=KINDS[cache.kind],
        RAGGED=placing.positions.ndim == 2,
        READS_PEAKS=peaks_in is not None,
    )
    return q
