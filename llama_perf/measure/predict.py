"""What a row will take in memory, without running it: its shapes on the meta device.

The weights as they are packed, caches and mask as the engine allocates them, and what
is alive beside them while a prompt and a token run through one layer and the head. All
operators are taken as eager ones, which keep more than compiled ones. Knows no weights
and no card: neither how an allocator rounds, nor what the operators of a library take
inside; torchao's kernels may unpack whole weights.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from llama_perf.kernels.attention import at_a_time
from llama_perf.kernels.cache_codes import WIDENED
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import PREFILL_CHUNK, Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import Sampling, sample
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.model_size import model_bytes
from llama_perf.rows.spec import RowSpec

CUBLAS_BYTES = 32 * 2**20
"""What cuBLAS keeps to work in on sm_90 and up; 8 MiB before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Bytes that a row takes.

    `cache_bytes` are those of all positions allocated, with the mask where the row's
    attention keeps one; on a CPU pages of it that are never written take no memory.
    `embedding_bytes` are 0 where the output layer, part of the model's size, shares
    the embedding.
    """

    model_size_bytes: int
    embedding_bytes: int
    cache_bytes: int
    working_bytes: int

    @property
    def peak_bytes(self) -> int:
        """All of it."""
        held = self.model_size_bytes + self.embedding_bytes + self.cache_bytes
        return held + self.working_bytes


def predict(row: RowSpec, config: ModelConfig) -> Prediction:
    """What `row` takes with a model of this shape.

    Of autoquant, whose choice depends on the device, with the fewest bytes it can
    choose. Raises SpecError for a scheme that does not fit the shape, NotRunnable for
    one that is not built.
    """
    dtype: torch.dtype = getattr(torch, row.dtype)
    tied = config.tied_embeddings and row.quantization is None
    embedding = config.vocab_size * config.dim * dtype.itemsize
    unquantized = _unquantized(row)
    working = _working_bytes(config, unquantized)
    return Prediction(
        model_size_bytes=model_bytes(
            config,
            row.quantization,
            kernels=row.kernels,
            dtype=dtype,
            device=row.device,
        ),
        embedding_bytes=0 if tied else embedding,
        cache_bytes=_cache_bytes(config, unquantized),
        working_bytes=working + (CUBLAS_BYTES if row.device == "cuda" else 0),
    )


def _unquantized(row: RowSpec) -> RowSpec:
    """`row` without what changes no activation and no cache: rows share a result."""
    return replace(
        row, quantization=None, kernels="native", compile=False, compile_prefill=False
    )


def _inside(config: ModelConfig, row: RowSpec) -> int:
    """What `prefill_attention` takes at a time beside its result."""
    size: int = getattr(torch, row.dtype).itemsize
    width, chunk = config.head_dim, row.prefill_chunk or PREFILL_CHUNK
    tokens = min(chunk, max(row.fill, row.prompt_length))
    # Queries and result by heads of the cache.
    grouped = 2 * row.batch_size * config.n_heads * tokens * width * size
    if row.kv_cache is None:
        return grouped
    heads, step = at_a_time(row.batch_size * config.n_kv_heads, width, tokens)
    behind = row.fill + row.prompt_length - tokens
    whole = heads * max(min(step, behind), tokens) * width
    # Keys and values, and some of the values in float32: beside them the bits that fp8
    # is widened from, or what they are rounded to.
    rounded = size if size < 4 else 0
    if row.kv_cache == "fp8":
        rounded = max(rounded, 2)
    widened = min(whole, WIDENED) * (4 + rounded)
    # What is merged, in float32, and a piece's part of it.
    queries = heads * tokens * width * (config.n_heads // config.n_kv_heads)
    return grouped + 2 * whole * size + max(widened, queries * size) + queries * 4


@cache
def _cache_bytes(config: ModelConfig, row: RowSpec) -> int:
    """Bytes of the caches of all layers and of the mask."""

    def of(layers: int) -> int:
        live = LiveBytes("meta")
        model = _model(replace(config, n_layers=layers), row)
        with live:
            engine = _engine(model, row)
            held = live.now
        del engine
        return held

    one, two = of(1), of(2)
    return one + (config.n_layers - 1) * (two - one)


@cache
def _working_bytes(config: ModelConfig, row: RowSpec) -> int:
    """Most bytes alive beside weights and caches, of all steps."""
    model = _model(replace(config, n_layers=1), row)
    inside = {torch.ops.llama_perf.prefill_attention.default: _inside(config, row)}
    live = LiveBytes("meta", model.parameters(), inside)
    with live, torch.no_grad():
        engine = _engine(model, row)
        held = live.now
        if row.fill:
            with _attention(row, masked=False):
                _fill(engine, row)
            engine.filled = row.fill
        with _attention(row, masked=row.fill > 0):
            logits = engine.prefill(_tokens(row, row.prompt_length))
        token = _sampled(logits, row)
        del logits
        position = torch.zeros((1,), dtype=torch.int64, device="meta")
        with _attention(row, masked=True):
            _sampled(engine.decode(token, position), row)
        return live.peak - held


def _fill(engine: Engine, row: RowSpec) -> None:
    """The first chunk and the last two or three: those between are alike."""
    whole = row.fill if row.attention == "sdpa" else PREFILL_CHUNK
    chunk, tokens = row.prefill_chunk or whole, _tokens(row, row.fill)
    # A chunk's result is alive during the next one: two whole ones, and what is left.
    last = max(row.fill // chunk - 2, 0) * chunk
    for start, part in ((0, tokens[:, :chunk]), (last, tokens[:, last:])):
        engine.filled = start
        engine.prefill(part)


def _tokens(row: RowSpec, length: int) -> Tensor:
    return torch.zeros((row.batch_size, length), dtype=torch.int64, device="meta")


def _model(config: ModelConfig, row: RowSpec) -> Transformer:
    dtype: torch.dtype = getattr(torch, row.dtype)
    with torch.device("meta"):
        return Transformer(config).to(dtype)


def _engine(model: Transformer, row: RowSpec) -> Engine:
    eager = replace(row, compile=False, compile_prefill=False, capture=False)
    return Engine(model, EngineOptions.of(replace(eager, fused=False)))


def _sampled(logits: Tensor, row: RowSpec) -> Tensor:
    return sample(logits, Sampling(temperature=row.temperature, top_k=row.top_k))


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps nothing but its result, as the fused kernels do."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _attention(row: RowSpec, *, masked: bool) -> AbstractContextManager[object]:
    """How attention runs: under a mask on CUDA no fused kernel takes grouped queries.

    Keys and values are repeated for every query head there, 16-bit ones in float32.
    """
    if masked and row.device == "cuda":
        return sdpa_kernel(SDPBackend.MATH)
    return _FusedAttention()
