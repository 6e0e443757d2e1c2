"""How the next token is chosen: on the device, without waiting for the host.

The exponential race: argmax of p / e with e drawn from Exp(1) is a draw from p, and
unlike `torch.multinomial` it needs no synchronisation. The method is gpt-fast's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.kernels.decode_state import DecodeState
from llama_perf.rows.spec import check_sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits.

    `temperature` 0 is greedy; `top_k` None draws from the whole vocabulary. With a
    `seed` the draws are repeatable on one type of device. A `generator` of the model's
    device does the same over several generations. Raises SpecError.
    """

    temperature: float = 0.8
    top_k: int | None = 200
    seed: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_sampling(temperature=self.temperature, top_k=self.top_k)
        if self.seed is not None and self.generator is not None:
            raise SpecError("seed", self.seed, "allowed: a seed or a generator")


GREEDY = Sampling(temperature=0.0)


def sample(logits: Tensor, sampling: Sampling) -> Tensor:
    """Draw int64 (B, 1) from `logits`, (B, vocabulary)."""
    assert sampling.seed is None, "a seed becomes a generator first"
    if sampling.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scaled = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        # Unsorted, CUDA selects by radix instead of sorting.
        top_k = min(sampling.top_k, scaled.shape[-1])
        best = scaled.topk(top_k, dim=-1, sorted=False).values
        scaled = scaled.masked_fill(scaled < best.amin(-1, keepdim=True), -torch.inf)
    race = torch.empty_like(scaled).exponential_(1.0, generator=sampling.generator)
    return (scaled.softmax(-1) / race).argmax(-1, keepdim=True)


ChooseToken = Callable[[Tensor, DecodeState], None]
"""Chooses the next token from logits (B, vocabulary) and advances the state."""


def token_chooser(sampling: Sampling) -> ChooseToken:
    """Choose by `sample`, operator by operator."""

    def choose(logits: Tensor, state: DecodeState) -> None:
        token = sample(logits, sampling)
        state.token.copy_(token)
        state.history.index_copy_(1, state.count, token)
        state.count.add_(1)
        state.position.add_(1)

    return choose
