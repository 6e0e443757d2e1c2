"""The key-value cache of one block, allocated once and written in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama_perf.model.config import ModelConfig

# Shape legend: B batch, H heads of the cache, S positions allocated, T positions of
# this call, D head width.


class KVCache(nn.Module):
    """Keys and values in the model's dtype, each (B, H, S, D)."""

    k_cache: Tensor
    v_cache: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        cache_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        shape = (batch_size, config.n_kv_heads, cache_size, config.head_dim)
        for name in ("k_cache", "v_cache"):
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            self.register_buffer(name, zeros, persistent=False)

    def update(self, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Write `k` and `v`, each (B, H, T, D), at `positions`, int64 (T,)."""
        self.k_cache[:, :, positions] = k
        self.v_cache[:, :, positions] = v
