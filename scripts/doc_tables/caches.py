"""SmolLM2 with a quantized cache compared with an unquantized one, on a long text.

The text is the Python reference's chapter on compound statements, prose and code, as
Python itself carries it: its wording differs a little between versions. It runs in
chunks as a prompt does; each chunk sees what the cache holds of those before it.
Keys and values are rounded as activations are, so limits are those of `redraws`.
"""

from functools import cache
from pydoc_data.topics import topics

import torch
from torch import Tensor

from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.llama.attention import VisiblePositions
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from scripts.doc_tables.closeness import DRAWS, FIGURES, Limits, Redraws, moved
from scripts.doc_tables.document import Place, Table
from scripts.doc_tables.figures import Closeness, closeness
from scripts.doc_tables.smollm2 import smollm2_path, unquantized

LENGTH, CHUNK = 1024, 256
# Mean and standard deviation of 16 draws.
REDRAWN = {
    "int8": Redraws(
        Closeness(41.04, 0.00084, 0.9824, 0.0004),
        Closeness(0.14, 0.00004, 0.0026, 0.0007),
    ),
    "fp8": Redraws(
        Closeness(32.58, 0.00674, 0.9624, 0.0050),
        Closeness(0.19, 0.00023, 0.0037, 0.0020),
    ),
}
LIMITS = {kind: Limits.over(redraws) for kind, redraws in REDRAWN.items()}


@cache
def long_tokens() -> Tensor:
    """The text's first ids, int64 (1, LENGTH)."""
    ids = load_tokenizer(smollm2_path()).encode(topics["compound"])
    return torch.tensor([ids[:LENGTH]])


@cache
def logits_with_cache(kind: str | None, length: int = LENGTH) -> Tensor:
    """At each of the text's first positions, float32 (1, length, vocabulary)."""
    model, ids = unquantized(), long_tokens()
    caches = Engine(model, EngineOptions(cache_size=length, kv_cache=kind)).caches
    parts = []
    with torch.no_grad():
        for start in range(0, length, CHUNK):
            end = start + CHUNK
            visible = VisiblePositions(end=end)
            part = (ids[:, start:end], torch.arange(start, end))
            x = model.hidden(*part, caches=caches, visible=visible)
            parts.append(model.head(x))
    return torch.cat(parts, 1)


def compared(kind: str) -> Closeness:
    """The text with a cache of that kind compared with the unquantized cache."""
    return closeness(logits_with_cache(None), logits_with_cache(kind), long_tokens())


def cells(kind: str, redraws: Redraws) -> list[str]:
    """As the table has them, each with its limit."""
    return LIMITS[kind].beside(redraws.cells(".2f", ".5f", ".4f", ".2%"))


def _draw(kind: str) -> tuple[list[str], list[str]]:
    exact, ids = logits_with_cache(None), long_tokens()
    draws = [
        closeness(exact, logits_with_cache.__wrapped__(kind), ids)
        for _ in moved(unquantized().tok_embeddings.weight, DRAWS)
    ]
    return cells(kind, Redraws.of(draws)), []


TABLE = Table(
    place=Place("correctness.md", "caches"),
    headers=("cache", *FIGURES),
    keys=[(kind,) for kind in REDRAWN],
    draw=_draw,
)
