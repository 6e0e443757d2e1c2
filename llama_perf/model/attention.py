"""Attention paths: how queries meet the cached keys and values.

`sdpa` is the reference's path: PyTorch's `scaled_dot_product_attention` over the
whole allocated cache under a mask. The mask is either the whole cache_size x
cache_size triangle, kept, or with `linear_causal_mask` the rows in use, computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf.model.config import ModelConfig
from llama_perf.model.kv_cache import KVCache
from llama_perf.model.linear import Linear
from llama_perf.model.rotary import Rotary, apply_rotary


class CausalMask:
    """Which cached positions each query position may see."""

    def __init__(self, cache_size: int, *, linear: bool, device: torch.device) -> None:
        self._columns = torch.arange(cache_size, device=device)
        self._triangle = None if linear else self._rows(self._columns)

    def _rows(self, positions: Tensor) -> Tensor:
        return positions[:, None] >= self._columns[None, :]

    def rows(self, positions: Tensor) -> Tensor:
        """Bool (T, cache_size) of int64 positions (T,)."""
        if self._triangle is None:
            return self._rows(positions)
        return self._triangle[positions]


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
        mask: Tensor | None,
    ) -> Tensor:
        """Attend from `x`, (B, T, dim), to itself or to the cache; (B, T, dim).

        Without a mask the T positions attend causally to one another alone, as in
        a prefill from position 0; with one, bool (T, S), to the whole cache.
        """
        batch, length, _ = x.shape
        qkv = self.wqkv(x).view(batch, length, -1, self.head_dim)
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        q, k = apply_rotary(q, cos_sin), apply_rotary(k, cos_sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if cache is not None:
            cache.update(positions, k, v)
            if mask is not None:
                k, v = cache.k_cache, cache.v_cache
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        out: Tensor = self.wo(y.transpose(1, 2).reshape(batch, length, -1))
        return out
