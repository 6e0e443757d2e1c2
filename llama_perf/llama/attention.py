"""The key-value cache of a block, and attention to it on one of two paths.

`decode`, the default, attends only to the filled positions, without a mask
(`llama_perf.kernels.attention`). `sdpa` is the reference's path: PyTorch's
`scaled_dot_product_attention` over all positions of the cache under a mask, with a
quantized cache dequantized first. The mask is stored as a cache_size x cache_size
triangle; with `linear_causal_mask` only the rows in use are computed.

A layer with a sliding window attends, on both paths, to the last positions only. A
cache that is no longer than the window is one without.

Shape legend: B batch, H heads of the cache, S positions allocated, T positions of a
call, D head width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf.errors import SpecError
from llama_perf.kernels import cache_codes
from llama_perf.kernels.attention import decode_attention, prefill_attention
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.layers import Linear, RMSNorm, Rotary, apply_rotary
from llama_perf.llama.memory_segments import reserve_segment

KINDS = {"int8": cache_codes.INT8, "fp8": cache_codes.FP8}
"""The kinds of a quantized cache, and the dtype of their codes."""


class KVCache(nn.Module):
    """Keys and values, each (B, H, S, D); scales (B, H, S), None where unquantized.

    Allocated once and written in place: in the model's dtype, or in one byte a value
    with a scale for each token and head (`kernels/cache_codes.py`). `split_counter`,
    int32 (B * H,), is for the attention kernel: it counts the programs of a sequence
    and head that have finished, and is 0 between launches. `window` is how many of the
    last positions a token attends to, 0 for all.
    """

    k_cache: Tensor
    v_cache: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    split_counter: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        cache_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: str | None = None,
        window: int = 0,
    ) -> None:
        super().__init__()
        if kind is not None and kind not in KINDS:
            raise SpecError("kv_cache", kind, f"allowed: {', '.join(KINDS)}")
        self.dtype, self.window = dtype, window
        shape = (batch_size, config.n_kv_heads, cache_size)
        stored = dtype if kind is None else KINDS[kind]
        zeros = partial(torch.zeros, device=device)
        register = partial(self.register_buffer, persistent=False)
        for name in ("k", "v"):
            register(f"{name}_cache", zeros(*shape, config.head_dim, dtype=stored))
            scale = None if kind is None else zeros(shape, dtype=cache_codes.SCALE)
            register(f"{name}_scale", scale)
        register("split_counter", zeros(shape[0] * shape[1], dtype=torch.int32))

    def update(self, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Write `k` and `v`, (B, H, T, D), at int64 `positions`, (T,) or (B, T)."""
        if self.k_scale is not None and self.v_scale is not None:
            # Stacked: uncompiled, two operations of a token cost twice as much as one.
            both = torch.stack((k, v))
            (k, v), scales = cache_codes.quantize(both, self.k_cache.dtype)
            _put(self.k_scale, positions, scales[0])
            _put(self.v_scale, positions, scales[1])
        _put(self.k_cache, positions, k)
        _put(self.v_cache, positions, v)

    @property
    def tensors(self) -> cache_codes.CachedTensors:
        """The tensors as the kernels take them."""
        parts = (self.k_cache, self.v_cache, self.k_scale, self.v_scale)
        return cache_codes.CachedTensors(*parts)

    def dequantized(self, end: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values before `end`, or all, in the model's dtype: of codes, a copy.

        They are (B, H, end, D).
        """
        k, v, k_scale, v_scale = self.tensors.map(lambda tensor: tensor[:, :, :end])
        if k_scale is None or v_scale is None:
            return k, v
        keys = cache_codes.dequantized(k, k_scale, self.dtype)
        return keys, cache_codes.dequantized(v, v_scale, self.dtype)


def _put(cache: Tensor, positions: Tensor, x: Tensor) -> None:
    """`x` (B, H, T, ...) into `cache` (B, H, S, ...) at (T,) or (B, T)."""
    if positions.ndim == 1:
        cache.index_copy_(2, positions, x)
    else:
        rows = torch.arange(len(cache), device=cache.device)[:, None]
        cache[rows, :, positions] = x.transpose(1, 2)


def caches(
    config: ModelConfig, *, cache_size: int, device: torch.device, **options: Any
) -> list[KVCache]:
    """One cache a layer, side by side in GPU memory; `options` are KVCache's."""

    def made(layer: int) -> KVCache:
        window = config.cache_window(layer, cache_size)
        sizes: dict[str, Any] = {"cache_size": cache_size, "window": window}
        return KVCache(config, device=device, **sizes, **options)

    first, others = made(0), range(1, config.n_layers)
    reserve_segment([buffer.nbytes for buffer in first.buffers()] * len(others), device)
    return [first, *map(made, others)]


class VisiblePositions(NamedTuple):
    """The positions that the queries of a call attend to.

    `filled`, int64 (B,) or (1,) on the device, is for one query a sequence: it attends
    to that many positions from the start of the cache. With `end` the queries are the
    last of the first `end` positions and attend causally. With `mask`, bool (T, S),
    they attend to the positions of the cache where it is true, in layers with a window
    by `window_mask`. Without any of them they attend to one another, causally.
    """

    filled: Tensor | None = None
    end: int | None = None
    mask: Tensor | None = None
    window_mask: Tensor | None = None


CAUSAL = VisiblePositions()


class Place(NamedTuple):
    """Where the tokens of a call stand, and what they attend to.

    `positions` are int64 (T,), or (B, T) where each sequence has its own.
    """

    rotary: Rotary
    positions: Tensor
    visible: VisiblePositions


def visible_columns(positions: Tensor, columns: Tensor, window: int) -> Tensor:
    """Which of int64 `columns` (S,) each of `positions` (T,) attends to, bool (T, S).

    They are those up to its own, the last `window` of them if that is not 0.
    """
    seen = positions[:, None] >= columns[None, :]
    if window:
        seen &= columns[None, :] > positions[:, None] - window
    return seen


class CausalMask(nn.Module):
    """The cached positions that each query position attends to."""

    columns: Tensor
    triangle: Tensor | None

    def __init__(
        self, cache_size: int, *, linear: bool, device: torch.device, window: int = 0
    ) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("columns", torch.arange(cache_size, device=device))
        triangle = None if linear else self._rows(self.columns)
        self.register_buffer("triangle", triangle)

    def _rows(self, positions: Tensor) -> Tensor:
        return visible_columns(positions, self.columns, self.window)

    def forward(self, positions: Tensor) -> Tensor:
        """Bool (T, S) of int64 positions (T,)."""
        triangle = self.triangle
        return self._rows(positions) if triangle is None else triangle[positions]


def masks(
    caches: Sequence[KVCache], cache_size: int, *, linear: bool
) -> list[CausalMask]:
    """A mask for each window that layers have, that of those without one first."""
    windows = sorted({cache.window for cache in caches})
    how: dict[str, Any] = {"linear": linear, "device": caches[0].k_cache.device}
    return [CausalMask(cache_size, window=window, **how) for window in windows]


def visible_by(
    masks: Sequence[CausalMask], positions: Tensor, *, alone: bool
) -> VisiblePositions:
    """What tokens at int64 `positions` (T,) see; `alone` there is no position before.

    Tokens alone need no mask, unless there are more of them than a window has.
    """
    rows = [
        None
        if alone and len(positions) <= (mask.window or len(positions))
        # A mask of a window is needed, or of what stands before.
        else mask(positions)
        for mask in masks
    ]
    return VisiblePositions(mask=rows[0], window_mask=rows[-1])


class Attention(nn.Module):
    """Multi-head attention with grouped queries and one fused input projection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = width = config.head_dim
        self.rotates = layer not in config.nope_layers
        self.window = config.window(layer) or 0
        self.wqkv = Linear(
            config.dim,
            config.qkv_size,
            bias=config.qkv_bias,
            cut=config.cut_of("attention.wqkv"),
        )
        self.wo = Linear(
            config.n_heads * width,
            config.dim,
            bias=config.output_bias,
            cut=config.cut_of("attention.wo"),
        )
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(width, config.norm_eps)
            self.k_norm = RMSNorm(width, config.norm_eps)

    def forward(self, x: Tensor, cache: KVCache | None, place: Place) -> Tensor:
        """Attend from `x`, (B, T, dim), to itself or to the cache; (B, T, dim)."""
        out: Tensor = self.wo(self.attend(self.wqkv(x), cache, place))
        return out

    def attend(self, qkv: Tensor, cache: KVCache | None, place: Place) -> Tensor:
        """As `forward`, between its linears: of queries, keys and values (B, T, N)."""
        batch, length, _ = qkv.shape
        rotary, positions, visible = place
        qkv = qkv.view(batch, length, -1, self.head_dim)
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            cache.update(positions, k, v)
        if cache is not None and (
            visible.filled is not None or visible.end is not None
        ):
            y = attend_filled(q, cache, visible)
        else:
            mask = visible.mask
            if cache is None:
                if 0 < self.window < length:
                    mask = visible_columns(positions, positions, self.window)
            else:
                if cache.window:
                    mask = visible.window_mask
                # As the cache stores them. Without a mask it has this call's only.
                k, v = cache.dequantized(length if mask is None else None)
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=self.n_heads != self.n_kv_heads,
            ).transpose(1, 2)
        return y.reshape(batch, length, -1)


def attend_filled(q: Tensor, cache: KVCache, visible: VisiblePositions) -> Tensor:
    """Attend from (B, T, heads, D) to the filled positions; the same shape."""
    if visible.filled is None:
        y: Tensor = prefill_attention(q, *cache.tensors, visible.end, cache.window)
    else:
        state = cache.split_counter, visible.filled
        y = decode_attention(q, *cache.tensors, *state, cache.window)
    return y
