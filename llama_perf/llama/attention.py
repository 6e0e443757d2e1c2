"""Attention of queries to cached keys and values, on one of two paths.

`decode`, the default, attends only to the filled positions, without a mask
(`llama_perf.kernels.attention`). `sdpa` is the reference's path: PyTorch's
`scaled_dot_product_attention` over all positions of the cache under a mask, with a
quantized cache dequantized first. The mask is stored as a cache_size x cache_size
triangle; with `linear_causal_mask` only the rows in use are computed.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf.kernels.attention import decode_attention, prefill_attention
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.kv_cache import KVCache
from llama_perf.llama.linear import Linear
from llama_perf.llama.rotary import Rotary, apply_rotary


class VisiblePositions(NamedTuple):
    """The positions that the queries of a call attend to.

    `filled`, int64 (B,) or (1,) on the device, is for one query a sequence: it attends
    to that many positions from the start of the cache. With `end` the queries are the
    last of the first `end` positions and attend causally. With `mask`, bool (T, S),
    they attend to the positions of the cache where it is true. Without any of them they
    attend to one another, causally.
    """

    filled: Tensor | None = None
    end: int | None = None
    mask: Tensor | None = None


CAUSAL = VisiblePositions()


class CausalMask:
    """The cached positions that each query position attends to."""

    def __init__(self, cache_size: int, *, linear: bool, device: torch.device) -> None:
        self._columns = torch.arange(cache_size, device=device)
        self._triangle = None if linear else self._rows(self._columns)

    def _rows(self, positions: Tensor) -> Tensor:
        return positions[:, None] >= self._columns[None, :]

    def memory_bytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (self._columns, self._triangle)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def rows(self, positions: Tensor) -> Tensor:
        """Bool (T, cache_size) of int64 positions (T,)."""
        triangle = self._triangle
        return self._rows(positions) if triangle is None else triangle[positions]


def visible_to_chunk(
    mask: CausalMask | None, positions: Tensor, start: int, end: int
) -> VisiblePositions:
    """For a prompt's queries at `positions`, int64 (T,), from `start` to `end`."""
    if mask is None:
        return VisiblePositions(end=end)
    return VisiblePositions(mask=mask.rows(positions)) if start else CAUSAL


def visible_to_token(mask: CausalMask | None, position: Tensor) -> VisiblePositions:
    """For the query of a decode step at `position`, int64 (1,) or (B, 1)."""
    if mask is None:
        return VisiblePositions(filled=position.flatten() + 1)
    return VisiblePositions(mask=mask.rows(position))


class Attention(nn.Module):
    """Multi-head attention with grouped queries and one fused input projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.wqkv = Linear(config.dim, config.qkv_size)
        self.wo = Linear(config.n_heads * config.head_dim, config.dim)

    def forward(
        self,
        x: Tensor,
        cos_sin: Rotary,
        positions: Tensor,
        cache: KVCache | None,
        visible: VisiblePositions,
    ) -> Tensor:
        """Attend from `x`, (B, T, dim), to itself or to the cache; (B, T, dim).

        `positions` are int64 (T,), or (B, T) where each sequence has its own.
        """
        batch, length, _ = x.shape
        qkv = self.wqkv(x).view(batch, length, -1, self.head_dim)
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        q, k = apply_rotary(q, cos_sin), apply_rotary(k, cos_sin)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            cache.update(positions, k, v)
        if cache is not None and (
            visible.filled is not None or visible.end is not None
        ):
            y = attend_filled(q, cache, visible)
        else:
            mask = visible.mask
            if cache is not None and mask is not None:
                k, v = cache.dequantized()
            elif cache is not None:
                k, v = cache.round_trip(k), cache.round_trip(v)
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=self.n_heads != self.n_kv_heads,
            ).transpose(1, 2)
        out: Tensor = self.wo(y.reshape(batch, length, -1))
        return out


def attend_filled(q: Tensor, cache: KVCache, visible: VisiblePositions) -> Tensor:
    """Attend from (B, T, heads, D) to the filled positions; the same shape."""
    tensors = (cache.k_cache, cache.v_cache, cache.k_scale, cache.v_scale)
    if visible.filled is not None:
        y: Tensor = decode_attention(q, *tensors, cache.split_counter, visible.filled)
    else:
        y = prefill_attention(q, *tensors, visible.end)
    return y
