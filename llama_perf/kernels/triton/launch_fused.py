"""Launches of the fused kernels: grids, constants, and the calls of a layer's steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from triton import next_power_of_2

from llama_perf.devices.device import device_of
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.launch_table import chosen, launch_key
from llama_perf.kernels.packing import LANES
from llama_perf.kernels.triton.fused import ADD, GATE, KEEP
from llama_perf.kernels.triton.fused import project as project_kernel
from llama_perf.kernels.triton.fused import project_heads as project_heads_kernel
from llama_perf.kernels.triton.launch import Launch, aligned, run
from llama_perf.kernels.triton.launch_attention import KINDS
from llama_perf.kernels.triton.launch_products import FEW, few_launch
from llama_perf.kernels.weight import Packed


def launch_here(x: Tensor, weight: Packed, **how: int) -> Launch:
    """The launch for tokens `x` on their device, by its table or the rule.

    `how` has `weights` and `head_width`, as of `few_launch`.
    """
    tuned, tokens = None, x[..., 0].numel()
    if x.device.type == "cuda":
        key = launch_key(weight, tokens, x.dtype, weights=how.get("weights", 1))
        tuned = chosen(_card_key(x.device), key)
    return few_launch(weight, tokens, x.dtype, fused=True, tuned=tuned, **how)


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
    """The tokens' largest magnitudes, by which tokens are rounded to int8 or float16.

    Each tensor is int32 (8,), the bits of float32. `read` has those of the input, which
    the kernel in front wrote. `written`, zeros before, gets those of the result, times
    `next_norm_weight` where there is a residual. `cleared`, (8,) or (16,), becomes
    zeros. None: not read, not written, not cleared.
    """

    read: Tensor | None = None
    written: Tensor | None = None
    cleared: Tensor | None = None
    next_norm_weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """What is done to get queries, keys and values, before they are rotated.

    The product's input is normalized by `norm`. `bias` (rows,) is added to the product,
    and each head of queries and of keys is normalized by `q_norm` and `k_norm`, (D,).
    None: not done.
    """

    norm: Norm
    bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


NO_PEAKS = Peaks()


def any_peaks(device: torch.device) -> Peaks:
    """Peaks to read where a product is timed by itself: any value will do."""
    return Peaks(read=torch.full((8,), 4.0, device=device).view(torch.int32))


def project(
    x: Tensor,
    weights: Sequence[Packed],
    split_counter: Tensor,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    peaks: Peaks = NO_PEAKS,
    launch: Launch | None = None,
) -> Tensor:
    """The product of `x`, (M, K) of at most eight tokens, in x's dtype, (M, N).

    With `norm` it is the product of the normalized x. With `residual`, (M, N), the
    product is added to that in place. Of two weights alike, a gate and what it gates,
    it is silu of the first product times the second one. `split_counter`, int32 zeros,
    at least one for sixteen rows, is left zeros. `launch` is how, where the table is
    not to be asked.
    """
    x, first, last = aligned(x), weights[0], weights[-1]
    assert first.kind == last.kind, "two kinds of weights"
    tokens, blocks, products = len(x), -(-first.rows // LANES), len(weights)
    assert 1 <= tokens <= FEW, f"{tokens} tokens"
    assert len(split_counter) >= blocks, f"{len(split_counter)} counters for {blocks}"
    launch = launch or launch_here(x, first, weights=products)
    out = x.new_empty((tokens, first.rows)) if residual is None else residual
    what = GATE if products > 1 else KEEP if residual is None else ADD
    shape = (launch.splits, products, tokens)
    parts = x.new_empty((*shape, first.rows), dtype=torch.float32)
    squares = x.new_empty((*shape, blocks), dtype=torch.float32)
    norm_weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
    inputs = (x, norm_weight, *first.tensors, *last.tensors)
    outputs = (out, peaks.read, peaks.written, peaks.cleared, peaks.next_norm_weight)
    room = (parts, squares, split_counter)
    run(
        project_kernel,
        launch,
        (*inputs, *outputs, *room, eps, tokens, first.rows),
        WHAT=what.value,
        SPLITS=launch.splits,
        CLEARED_PEAKS=0 if peaks.cleared is None else peaks.cleared.numel(),
    )
    return out


def project_heads(
    x: Tensor,
    weight: Packed,
    split_counter: Tensor,
    *,
    heads: Heads,
    place: tuple[tuple[Tensor, Tensor], Tensor],
    cache: CachedTensors,
    peaks_in: Tensor | None = None,
) -> Tensor:
    """Queries (B, T, heads, D) of `x` (B, T, K); writes keys and values into the cache.

    `place` has the rotary angles' cosines and sines, float32 (positions, D / 2), and
    the tokens' int64 positions, (T,), or (B, 1) where each sequence has its own. See
    the kernel; `peaks_in` is as `Peaks.read`.
    """
    x, (batch, length, _), rows = aligned(x), x.shape, weight.rows
    tokens, (angles, positions) = batch * length, place
    assert 1 <= tokens <= FEW, f"{tokens} tokens"
    _, kv_heads, size, width = cache.k.shape
    query_heads = rows // width - 2 * kv_heads
    launch = launch_here(x, weight, head_width=width)
    q = x.new_empty((batch, length, query_heads, width))
    blocks = rows // launch.constants["BLOCK_N"]
    parts = x.new_empty((launch.splits, tokens, rows), dtype=torch.float32)
    squares = x.new_empty((launch.splits, tokens, blocks), dtype=torch.float32)
    changes = (heads.bias, heads.q_norm, heads.k_norm)
    inputs = (x, heads.norm.weight, *weight.tensors, *changes, *angles, positions)
    outputs = (q, *cache.pointers, peaks_in, parts, squares, split_counter)
    sizes = (heads.norm.eps, tokens, rows, size, length)
    run(
        project_heads_kernel,
        launch,
        (*inputs, *outputs, *sizes),
        HEADS=query_heads,
        KV_HEADS=kv_heads,
        D=width,
        BLOCK_D=next_power_of_2(width),
        KIND=KINDS[cache.kind],
        RAGGED=positions.ndim == 2,
        SPLITS=launch.splits,
    )
    return q
