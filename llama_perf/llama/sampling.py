"""Choosing the next token on the device, without waiting for the host.

The exponential race: argmax of p / e with e drawn from Exp(1) is a draw from p, and
unlike `torch.multinomial` it needs no synchronisation. gpt-fast uses it so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Fed:
    """What a step of decoding feeds itself with: tensors that move on in place.

    `token` is int64 (B, 1), `position`, where it is read, int64 (1,) or (B, 1);
    `history`, int64 (B, N), holds the `count`, int64 (1,), tokens since the beginning.
    `seed`, int64 (1,), is read by a `Feed` that draws from no generator.
    """

    token: Tensor
    position: Tensor
    history: Tensor
    count: Tensor
    seed: Tensor

    @classmethod
    def room(cls, batch: int, most: int, *, ragged: bool, device: torch.device) -> Fed:
        """For `most` tokens of each sequence, with positions of its own if `ragged`."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            token=zeros(batch, 1),
            position=zeros(batch, 1) if ragged else zeros(1),
            history=zeros(batch, most),
            count=zeros(1),
            seed=zeros(1),
        )


Feed = Callable[[Tensor, Fed], None]
"""Chooses the next token from logits (B, vocabulary) and moves all of it on."""


def feeding(
    *, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Feed:
    """By `sample`, operator by operator."""

    def feed(logits: Tensor, fed: Fed) -> None:
        token = sample(
            logits, temperature=temperature, top_k=top_k, generator=generator
        )
        fed.token.copy_(token)
        fed.history.index_copy_(1, fed.count, token)
        fed.count.add_(1)
        fed.position.add_(1)

    return feed
