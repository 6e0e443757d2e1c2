"""SmolLM2 with a quantized cache beside the unquantized one, on a long text.

The text is the Python reference's chapter on compound statements, prose and code, as
Python itself carries it: its wording differs a little between versions. It runs in
chunks as a prompt does; each chunk sees what the cache holds of those before it.
Limits have the margins of `closeness_table`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pydoc_data.topics import topics

import torch
from closeness_table import DOCUMENT, Limits
from smollm2 import unquantized
from tabulate import tabulate
from tokenizer_samples import smollm2_path
from torch import Tensor

from llama_perf.closeness import Closeness, closeness
from llama_perf.document import rows_between
from llama_perf.model.attention import Seen
from llama_perf.model.kv_cache import KVCache
from llama_perf.tokenizer import load_tokenizer

BEGIN, END = "<!-- caches: begin -->", "<!-- caches: end -->"
LENGTH, CHUNK = 2048, 512
LIMITS: Mapping[str, Limits] = {
    "int8": Limits(
        least_db=38.8,
        most_kl_nats=0.00127,
        least_top1=0.978,
        most_perplexity_change=0.0021,
    ),
    "fp8": Limits(
        least_db=29.7,
        most_kl_nats=0.01323,
        least_top1=0.954,
        most_perplexity_change=0.0103,
    ),
}
_HEADERS = ("cache", "dB", "KL (nats)", "top-1", "perplexity")


@cache
def long_tokens() -> Tensor:
    """The text's first ids, int64 (1, LENGTH)."""
    ids = load_tokenizer(smollm2_path()).encode(topics["compound"])
    return torch.tensor([ids[:LENGTH]])


@cache
def logits_with_cache(kind: str | None, length: int = LENGTH) -> Tensor:
    """At each of the text's first positions, float32 (1, length, vocabulary)."""
    model, ids = unquantized(), long_tokens()
    caches = [
        KVCache(
            model.config,
            batch_size=1,
            cache_size=length,
            dtype=model.dtype,
            device=model.device,
            kind=kind,
        )
        for _ in model.layers
    ]
    parts = []
    with torch.no_grad():
        for start in range(0, length, CHUNK):
            end = start + CHUNK
            positions = torch.arange(start, end)
            x = model.hidden(
                ids[:, start:end], positions, caches=caches, seen=Seen(end=end)
            )
            parts.append(model.head(x))
    return torch.cat(parts, 1)


def compared(kind: str) -> Closeness:
    """The text with a cache of that kind beside the unquantized cache."""
    return closeness(logits_with_cache(None), logits_with_cache(kind), long_tokens())


def markdown(found: Mapping[str, Closeness]) -> str:
    """The table between the document's two marks."""
    cells = [
        (
            kind,
            f"{each.signal_to_noise_db:.1f} (at least {limits.least_db:.1f})",
            f"{each.kl_nats:.5f} (at most {limits.most_kl_nats:.5f})",
            f"{each.top1:.3f} (at least {limits.least_top1:.3f})",
            f"{each.perplexity_change:+.2%}"
            f" (within {limits.most_perplexity_change:.2%})",
        )
        for kind, each in found.items()
        for limits in [LIMITS[kind]]
    ]
    return tabulate(cells, headers=_HEADERS, tablefmt="github", disable_numparse=True)


def documented() -> dict[str, tuple[str, ...]]:
    """The limits in the document, as they stand in brackets, by the kind of cache."""
    return {
        row[0]: tuple(re.findall(r"\((.+?)\)", " ".join(row)))
        for row in rows_between(DOCUMENT, BEGIN, END)
    }
