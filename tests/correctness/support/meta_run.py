"""A row's engine run on the meta device, and the bytes of the tensors that it made.

The formulas of `llama_perf.measure` predict the same without running anything.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama_perf.llama.config import ModelConfig
from llama_perf.llama.decode_step import sample
from llama_perf.llama.engine import PREFILL_CHUNK, Engine
from llama_perf.llama.options import EngineOptions, Sampling
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.working_bytes import inside_prefill_bytes
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.live_bytes import LiveBytes


def bytes_on_meta(config: ModelConfig, row: RowSpec) -> tuple[int, int]:
    """Bytes of caches and mask; most bytes alive beside them and the weights.

    The model has one layer, whose working bytes are those of any.
    """
    config = replace(config, n_layers=1)
    with torch.device("meta"):
        model = Transformer(config).to(getattr(torch, row.dtype))
    operator = torch.ops.llama_perf.prefill_attention.default
    inside = {operator: inside_prefill_bytes(config, row)}
    live = LiveBytes("meta", model.parameters(), inside)
    with live, torch.no_grad():
        engine = Engine(model, EngineOptions.of(replace(row, compile=False)))
        cache_bytes = live.now
        _generate(engine, row)
    return cache_bytes, live.peak - cache_bytes


def _generate(engine: Engine, row: RowSpec) -> None:
    """Fill the cache, run the prompt and one decode step."""
    sampling = Sampling(temperature=row.temperature, top_k=row.top_k)

    def tokens(length: int) -> Tensor:
        return torch.zeros((row.batch_size, length), dtype=torch.int64, device="meta")

    if row.fill:
        # The first chunk and the last two or three: those between are alike.
        all_tokens = row.fill if row.attention == "sdpa" else PREFILL_CHUNK
        chunk, filling = row.prefill_chunk or all_tokens, tokens(row.fill)
        last = max(row.fill // chunk - 2, 0) * chunk
        with _attention(row, masked=False):
            engine.prefill(filling[:, :chunk])
            engine.filled = last
            engine.prefill(filling[:, last:])
        engine.filled = row.fill
        del filling
    with _attention(row, masked=row.fill > 0):
        token = sample(engine.prefill(tokens(row.prompt_length)), sampling)
    position = torch.zeros((1,), dtype=torch.int64, device="meta")
    with _attention(row, masked=True):
        sample(engine.decode(token, position), sampling)


def _attention(row: RowSpec, *, masked: bool) -> AbstractContextManager[object]:
    """Under a mask on CUDA no fused kernel takes grouped queries.

    A fused kernel keeps nothing but its result.
    """
    if masked and row.device == "cuda":
        return sdpa_kernel(SDPBackend.MATH)
    return patch.object(
        F,
        "scaled_dot_product_attention",
        lambda query, *_, **__: torch.empty_like(query),
    )
