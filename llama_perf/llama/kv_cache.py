"""The key-value cache of one block, allocated once and written in place.

In the model's dtype, or in one byte a value with a scale for each token and head
(`kernels/cache_codes.py`). Knows no attention.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llama_perf.errors import SpecError
from llama_perf.kernels import cache_codes
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.memory_segments import reserve_segment

# Shape legend: B batch, H heads of the cache, S positions allocated, T positions of
# this call, D head width.

KINDS = {"int8": cache_codes.INT8, "fp8": cache_codes.FP8}
"""The kinds of a quantized cache, and the dtype of their codes."""


class KVCache(nn.Module):
    """Keys and values, each (B, H, S, D); scales (B, H, S), None where unquantized.

    `split_counter`, int32 (B * H,), is for the attention kernel: it counts the programs
    of a sequence and head that have finished, and is 0 between launches.
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
    ) -> None:
        super().__init__()
        if kind is not None and kind not in KINDS:
            raise SpecError("kv_cache", kind, f"allowed: {', '.join(KINDS)}")
        self.dtype = dtype
        positions = (batch_size, config.n_kv_heads, cache_size)
        stored = dtype if kind is None else KINDS[kind]

        def register(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            self.register_buffer(name, zeros, persistent=False)

        for name in ("k", "v"):
            register(f"{name}_cache", (*positions, config.head_dim), stored)
            self.register_buffer(f"{name}_scale", None)
            if kind is not None:
                register(f"{name}_scale", positions, cache_codes.SCALE)
        register("split_counter", (batch_size * config.n_kv_heads,), torch.int32)

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
    def tensors(self) -> CachedTensors:
        """The tensors as the kernels take them."""
        return CachedTensors(
            k=self.k_cache, v=self.v_cache, k_scale=self.k_scale, v_scale=self.v_scale
        )

    def dequantized(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (B, H, S, D) in the model's dtype: of codes, a copy."""
        if self.k_scale is None or self.v_scale is None:
            return self.k_cache, self.v_cache
        return (
            cache_codes.dequantized(self.k_cache, self.k_scale, self.dtype),
            cache_codes.dequantized(self.v_cache, self.v_scale, self.dtype),
        )

    def round_trip(self, x: Tensor) -> Tensor:
        """`x` (B, H, T, D) as it reads once written to the cache."""
        if self.k_scale is None:
            return x
        codes, scale = cache_codes.quantize(x, self.k_cache.dtype)
        return cache_codes.dequantized(codes, scale, self.dtype)


def caches(
    config: ModelConfig, *, device: torch.device, **options: Any
) -> list[KVCache]:
    """One cache a layer, side by side in GPU memory; `options` are KVCache's."""
    first = KVCache(config, device=device, **options)
    others = config.n_layers - 1
    reserve_segment([buffer.nbytes for buffer in first.buffers()] * others, device)
    return [first, *(KVCache(config, device=device, **options) for _ in range(others))]


def _put(cache: Tensor, positions: Tensor, x: Tensor) -> None:
    """`x` (B, H, T, ...) into `cache` (B, H, S, ...) at (T,) or (B, T)."""
    if positions.ndim == 1:
        cache.index_copy_(2, positions, x)
    else:
        rows = torch.arange(len(cache), device=cache.device)[:, None]
        cache[rows, :, positions] = x.transpose(1, 2)
