"""Choosing the next token on the device, without waiting for the host.

The exponential race: argmax of p / e with e drawn from Exp(1) is a draw from p, and
unlike `torch.multinomial` it needs no synchronisation. gpt-fast uses it so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llama_perf.kernels.decode_state import DecodeState


def sample(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw int64 (B, 1) from `logits`, (B, vocabulary); temperature 0 is greedy."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scaled = logits.float() / temperature
    if top_k is not None:
        # Selected, and not sorted: on a card by radix select.
        kept = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1, sorted=False).values
        scaled = scaled.masked_fill(scaled < kept.amin(-1, keepdim=True), -torch.inf)
    race = torch.empty_like(scaled).exponential_(1.0, generator=generator)
    return (scaled.softmax(-1) / race).argmax(-1, keepdim=True)


Feed = Callable[[Tensor, DecodeState], None]
"""Chooses the next token from logits (B, vocabulary) and moves all of it on."""


def feeding(
    *, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Feed:
    """By `sample`, operator by operator."""

    def feed(logits: Tensor, fed: DecodeState) -> None:
        token = sample(
            logits, temperature=temperature, top_k=top_k, generator=generator
        )
        fed.token.copy_(token)
        fed.history.index_copy_(1, fed.count, token)
        fed.count.add_(1)
        fed.position.add_(1)

    return feed
