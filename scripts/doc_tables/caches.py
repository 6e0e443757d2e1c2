"""SmolLM2 with a quantized cache compared with an unquantized one, on a long text.

The text is the Python reference's chapter on compound statements, prose and code, as
Python itself carries it: its wording differs a little between versions. It runs in
chunks as a prompt does; each chunk sees what the cache holds of those before it.
Keys and values are rounded as activations are, so limits are those of `redraws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pydoc_data.topics import topics

import torch
from torch import Tensor

from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.llama.attention import VisiblePositions
from llama_perf.llama.kv_cache import KVCache
from scripts.doc_tables.closeness import FIGURES, Limits
from scripts.doc_tables.document import Table, github_table, place, select
from scripts.doc_tables.figures import Closeness, closeness
from scripts.doc_tables.redraws import DRAWS, Redraws, moved
from scripts.doc_tables.smollm2 import smollm2_path, unquantized

PLACE = place("correctness.md", "caches")
LENGTH, CHUNK = 2048, 512
# Mean and standard deviation of 16 draws.
REDRAWN: Mapping[str, Redraws] = {
    "int8": Redraws(
        signal_to_noise_db=(40.31, 0.15),
        kl_nats=(0.00089, 0.00004),
        top1=(0.9844, 0.0011),
        perplexity_change=(0.0006, 0.0008),
    ),
    "fp8": Redraws(
        signal_to_noise_db=(31.17, 0.16),
        kl_nats=(0.00843, 0.00035),
        top1=(0.9628, 0.0023),
        perplexity_change=(0.0050, 0.0015),
    ),
}
LIMITS: Mapping[str, Limits] = {
    kind: Limits.over(redraws) for kind, redraws in REDRAWN.items()
}


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
                ids[:, start:end],
                positions,
                caches=caches,
                visible=VisiblePositions(end=end),
            )
            parts.append(model.head(x))
    return torch.cat(parts, 1)


def compared(kind: str) -> Closeness:
    """The text with a cache of that kind compared with the unquantized cache."""
    return closeness(logits_with_cache(None), logits_with_cache(kind), long_tokens())


def redraw(kind: str, count: int = DRAWS) -> Redraws:
    """Draw the errors of a cache of that kind `count` times."""
    exact, ids = logits_with_cache(None), long_tokens()
    return Redraws.of(
        [
            closeness(exact, logits_with_cache.__wrapped__(kind), ids)
            for _ in moved(unquantized().tok_embeddings.weight, count)
        ]
    )


def tables(names: Sequence[str]) -> list[Table]:
    """The table of caches, with the kinds `names` drawn anew."""
    drawn = {kind: redraw(kind) for kind in select(names, LIMITS)}
    return [Table(place=PLACE, text=markdown(drawn))]


def markdown(drawn: Mapping[str, Redraws]) -> str:
    """The document's table; a kind that is not in `drawn` has those of the limits."""
    return github_table(
        (
            _cells(kind, drawn.get(kind, redraws), LIMITS[kind])
            for kind, redraws in REDRAWN.items()
        ),
        ("cache", *FIGURES),
    )


def _cells(kind: str, redraws: Redraws, limits: Limits) -> list[str]:
    pairs = zip(redraws.cells((2, 5, 4, 2)), limits.cells(), strict=True)
    return [kind, *(cell for pair in pairs for cell in pair)]
