"""The bytes of caches, and the most alive besides: filling, prefill and decoding.

Nothing is computed: the engine runs one layer and the head on the meta device, each
operator eagerly. Compiled code keeps less. Inside an operator only attention is
counted.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from llama_perf.kernels.attention import at_a_time, window_heads, window_step
from llama_perf.kernels.cache_codes import WIDENED
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.decode_step import sample
from llama_perf.llama.engine import PREFILL_CHUNK, Engine
from llama_perf.llama.options import EngineOptions, Sampling
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.rows.spec import RowSpec
from llama_perf.rows.transformers_fields import TRANSFORMERS

# One count serves all rows that differ in these: other code keeps less.
_EAGER: dict[str, Any] = dict.fromkeys(
    ("compile", "compile_prefill", "capture", "fused"), False
)


def cache_and_working_bytes(config: ModelConfig, row: RowSpec) -> tuple[int, int]:
    """Bytes of caches and mask; the most alive at once besides them and the weights."""
    eager = replace(row.unquantized, limits=None, **_EAGER)
    if row.engine == TRANSFORMERS:
        # It attends to its whole cache, under a mask that is made anew.
        own: Any = {"attention": "sdpa", "linear_causal_mask": True}
        eager = replace(eager, engine=None, **own)
    layer_bytes, mask_bytes, working_bytes = _on_meta(config.of_one_layer, eager)
    layers, size = range(config.n_layers), row.allocated_positions
    # A mask for each window, and one for layers without any.
    masks = len({config.cache_window(layer, size) for layer in layers})
    return config.n_layers * layer_bytes + masks * mask_bytes, working_bytes


@cache
def _on_meta(config: ModelConfig, row: RowSpec) -> tuple[int, int, int]:
    """Bytes of a layer's cache, of the mask, and the most besides, of one layer."""
    with torch.device("meta"):
        model = Transformer(config).to(getattr(torch, row.dtype))
    operator = torch.ops.llama_perf.prefill_attention.default
    inside = {operator: inside_prefill_bytes(config, row)}
    live = LiveBytes("meta", model.parameters(), inside)
    with live, torch.no_grad():
        engine = Engine(model, EngineOptions.of(row))
        held_bytes = live.now
        _generate(engine, row)
    layer_bytes = sum(buffer.nbytes for buffer in engine.caches[0].buffers())
    return layer_bytes, held_bytes - layer_bytes, live.peak - held_bytes


def _generate(engine: Engine, row: RowSpec) -> None:
    """Fill the cache, run the prompt and one decode step."""
    sampling = Sampling(temperature=row.temperature, top_k=row.top_k)
    default_chunk = engine.cache_size if row.attention == "sdpa" else PREFILL_CHUNK
    chunk = row.prefill_chunk or default_chunk

    def prefill(start: int, length: int) -> Tensor:
        tokens = torch.zeros((row.batch_size, length), dtype=torch.int64, device="meta")
        # The last two or three chunks take as much as those before them.
        skipped = max(length // chunk - 2, 0) * chunk
        engine.filled = start + skipped
        return engine.prefill(tokens[:, skipped:])

    if row.fill:
        with _attention(row, masked=False):
            prefill(0, row.fill)
    with _attention(row, masked=row.fill > 0):
        token = sample(prefill(row.fill, row.prompt_length), sampling)
    with _attention(row, masked=True):
        position = torch.zeros((1,), dtype=torch.int64, device="meta")
        sample(engine.decode(token, position), sampling)


def _attention(row: RowSpec, *, masked: bool) -> AbstractContextManager[object]:
    """Under a mask on CUDA no fused kernel takes grouped queries."""
    if masked and row.device == "cuda":
        return sdpa_kernel(SDPBackend.MATH)
    return _FusedAttention()


class _FusedAttention(TorchFunctionMode):
    """While active, attention keeps nothing but its result, as a fused kernel does."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def inside_prefill_bytes(config: ModelConfig, row: RowSpec) -> int:
    """Bytes that `prefill_attention` takes besides its result."""
    size: int = getattr(torch, row.dtype).itemsize
    width = config.head_dim
    tokens = min(row.prefill_chunk or PREFILL_CHUNK, max(row.fill, row.prompt_length))
    # Queries and result by heads of the cache.
    grouped = 2 * row.batch_size * config.n_heads * tokens * width * size
    heads, end = row.batch_size * config.n_kv_heads, row.fill + row.prompt_length
    window = config.sliding_window or 0
    masked = 0
    if 0 < window < end:
        tokens = min(window_step(window), tokens)
        spanned = min(tokens - 1 + window, end)
        # The mask of some queries, and what the attention of a CPU makes of it.
        masked = 5 * tokens * spanned
        masked += heads * tokens * width * (config.n_heads // config.n_kv_heads) * size
        heads = window_heads(heads, width, spanned)
        piece = heads * spanned * width
    else:
        heads, positions = at_a_time(heads, width, tokens)
        piece = heads * max(min(positions, end - tokens), tokens) * width
    if row.kv_cache is None:
        return grouped + masked
    # Keys and values, and some of the values in float32; then the bits that fp8
    # is widened from, or what they are rounded to.
    rounded = size if size < 4 else 0
    if row.kv_cache == "fp8":
        rounded = max(rounded, 2)
    widened = min(piece, WIDENED) * (4 + rounded)
    # The merged result, in float32, and a piece's part of it.
    queries = heads * tokens * width * (config.n_heads // config.n_kv_heads)
    pieces = 2 * piece * size + max(widened, queries * size) + queries * 4
    return grouped + masked + pieces
