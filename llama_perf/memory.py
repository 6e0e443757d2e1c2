"""Memory of a row: what it will at least need, and what it took.

On CUDA the allocator's counters; on CPU the resident set of this process, over what
it is once the row is gone: libraries loaded and code compiled on the way stay behind
and are not the row's. Linux keeps a high-water mark of the resident set and lets a
process reset it; where that is not possible the size at the time of asking stands in.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import psutil
import torch

from llama_perf.model.config import ModelConfig
from llama_perf.scheme import Scheme
from llama_perf.spec import RowSpec

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# 6 bits for fp6; for sparse-marlin half the values in int4, their positions in 2 bits
# and a 16-bit scale for every 128 weights, 3.125.
_FAMILY_BITS = {"fp6": 6.0, "sparse-marlin": 3.125, "autoquant-int4": 4.5}


def least_bytes(config: ModelConfig, row: RowSpec) -> int:
    """Weights, embedding and caches: a lower bound of what `row` needs."""
    return _weight_bytes(config, row) + least_cache_bytes(config, row)


def _weight_bytes(config: ModelConfig, row: RowSpec) -> int:
    size = _DTYPE_BYTES[row.dtype]
    block = config.dim * (config.qkv_size + config.n_heads * config.head_dim)
    block += 3 * config.dim * config.intermediate_size
    embedding = config.vocab_size * config.dim
    linear_bytes = (config.n_layers * block + embedding) * _bits(row) / 8
    shared = config.tied_embeddings and row.quantization is None
    return int(linear_bytes + (0 if shared else embedding * size))


def least_cache_bytes(config: ModelConfig, row: RowSpec) -> int:
    """Keys, values and the mask of all positions that `row` allocates."""
    # A quantized value takes one byte, and those of a head share a 16-bit scale.
    width = config.head_dim * _DTYPE_BYTES[row.dtype]
    if row.kv_cache is not None:
        width = config.head_dim + 2
    heads = 2 * config.n_layers * config.n_kv_heads * row.batch_size
    whole_mask = row.attention == "sdpa" and not row.linear_causal_mask
    mask = row.allocated_positions**2 if whole_mask else 0
    return heads * width * row.allocated_positions + mask


def _bits(row: RowSpec) -> float:
    if row.quantization is None:
        return 8.0 * _DTYPE_BYTES[row.dtype]
    scheme = Scheme.parse(row.quantization)
    if scheme.group_size is not None:
        return (scheme.bits or 4) + 16 / scheme.group_size
    return _FAMILY_BITS.get(scheme.family, 8.0)


class MemoryMeter:
    """Peaks of one row. Create it before the row takes any memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._base = 0
        release_memory(device)
        if not self._cuda:
            self._base = psutil.Process().memory_info().rss
        self.reset_peak()

    def reset_peak(self) -> None:
        """Start a new peak from what is in use now."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_high_water()

    def peak_bytes(self) -> int:
        """CUDA: `max_memory_reserved()`, as in the reference; CPU: resident growth."""
        if self._cuda:
            return int(torch.cuda.max_memory_reserved(self._device))
        return max(_high_water_bytes() - self._base, 0)

    def kept_bytes(self) -> int:
        """CPU: what the process kept once the row is gone; ask after dropping it.

        Part of `peak_bytes()` that the row did not cause. 0 on CUDA.
        """
        release_memory(self._device)
        if self._cuda:
            return 0
        return int(psutil.Process().memory_info().rss) - self._base

    def peak_allocated_bytes(self) -> int | None:
        """CUDA: `max_memory_allocated()`; None on CPU."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated(self._device))
        return None


def release_memory(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_high_water() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _high_water_bytes() -> int:
    current = psutil.Process().memory_info().rss
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return int(current)
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return max(int(match[1]) * 1024, current) if match else int(current)
