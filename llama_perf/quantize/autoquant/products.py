"""Which products one generation multiplies: every linear's shapes, counted.

Knows no scheme and no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import PREFILL_CHUNK
from llama_perf.rows.spec import RowSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """`tokens` (M) rows of activations times a weight (rows, columns): (N, K)."""

    tokens: int
    rows: int
    columns: int


def counted_products(row: RowSpec, config: ModelConfig) -> Counter[Product]:
    """How often one generation of `row` multiplies each product.

    A prompt is cut into the engine's chunks. The head multiplies the last token of
    each sequence only.
    """
    dim, hidden = config.dim, config.intermediate_size
    linears = [(config.qkv_size, dim), (dim, config.n_heads * config.head_dim)]
    linears += [(hidden, dim), (hidden, dim), (dim, hidden)]
    default = row.prompt_length if row.attention == "sdpa" else PREFILL_CHUNK
    chunk = row.prefill_chunk or default
    chunks, rest = divmod(row.prompt_length, chunk)
    passes = Counter({chunk: chunks, rest: int(rest > 0)})
    passes[1] += row.max_new_tokens - 1
    counts = Counter[Product]()
    for length, times in passes.items():
        for rows, columns in linears:
            tokens = row.batch_size * length
            product = Product(tokens=tokens, rows=rows, columns=columns)
            counts[product] += times * config.n_layers
    head = Product(tokens=row.batch_size, rows=config.vocab_size, columns=dim)
    counts[head] += row.max_new_tokens
    return +counts
