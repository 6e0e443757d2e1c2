"""Which products one generation multiplies: every linear's shapes, logged.

A generation on the meta device, where shapes are real and values are not: no weights,
no memory. Knows no scheme and no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """`tokens` (M) rows of activations times a weight (rows, columns): (N, K)."""

    tokens: int
    rows: int
    columns: int


def logged_products(
    config: ModelConfig,
    *,
    batch_size: int,
    prompt_length: int,
    max_new_tokens: int,
    attention: str = "decode",
    prefill_chunk: int | None = None,
) -> Counter[Product]:
    """How often one generation multiplies each product.

    Every step of decoding multiplies the same ones, so one step is run and counted
    as often as there are steps. `attention` and `prefill_chunk` are the engine's: by
    them a prompt is cut into chunks.
    """
    with torch.device("meta"):
        model = Transformer(config)
        prompt = torch.zeros((batch_size, prompt_length), dtype=torch.int64)
        token = prompt[:, :1]
        position = torch.zeros((1,), dtype=torch.int64)
    engine = Engine(
        model,
        EngineOptions(
            batch_size=batch_size,
            cache_size=prompt_length + 1,
            attention=attention,
            prefill_chunk=prefill_chunk,
        ),
    )
    logged: Counter[Product] = Counter()

    def log(linear: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(linear, nn.Linear), f"a hook on {type(linear)}"
        (x,) = arguments
        tokens = x.numel() // linear.in_features
        rows, columns = linear.out_features, linear.in_features
        logged[Product(tokens=tokens, rows=rows, columns=columns)] += 1

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(log)
    with torch.no_grad():
        engine.prefill(prompt)
        total = logged.copy()
        logged.clear()
        engine.decode(token, position)
    for product, count in logged.items():
        total[product] += count * (max_new_tokens - 1)
    return +total
