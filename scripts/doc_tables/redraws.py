"""How far a scheme that rounds activations strays only by the chance of rounding.

Two processors add the same numbers in two orders, so that their activations differ in
the last bits. A scheme that only rounds weights then has the same logits to 1e-6. One
that rounds activations too turns over some of the codes in every layer, and each turned
code turns over others after it: such a scheme draws its errors anew on each processor,
and its figures scatter. Here one processor draws them many times: each draw moves the
embedding by up to a float32 rounding, and the logits are compared with those of the
model that was not moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from unittest.mock import patch

import torch

from scripts.doc_tables.figures import Closeness, closeness
from scripts.doc_tables.rounding import exact_int_mm
from scripts.doc_tables.smollm2 import quantized, reference_logits, tokens

DRAWS = 16
# The mean and the deviation of 16 draws are themselves uncertain: of a normal
# distribution, with 95 % confidence one draw in 50 000 at most is further off than this
# (its tolerance interval).
DEVIATIONS = 6.0
# What a weight of about 1 changes by where its last bit does.
_LAST_BIT = 2.0**-22


@dataclass(frozen=True, kw_only=True, slots=True)
class Redraws:
    """Mean and standard deviation of each figure of `Closeness`, in its units."""

    signal_to_noise_db: tuple[float, float]
    kl_nats: tuple[float, float]
    top1: tuple[float, float]
    perplexity_change: tuple[float, float]

    @classmethod
    def of(cls, draws: list[Closeness]) -> Redraws:
        """The means and deviations of several draws."""
        figures = torch.tensor([astuple(draw) for draw in draws], dtype=torch.float64)
        pairs = zip(figures.mean(0).tolist(), figures.std(0).tolist(), strict=True)
        db, kl_nats, top1, perplexity = pairs
        return cls(
            signal_to_noise_db=db,
            kl_nats=kl_nats,
            top1=top1,
            perplexity_change=perplexity,
        )

    def cells(self, digits: tuple[int, int, int, int]) -> tuple[str, str, str, str]:
        """Mean and deviation of each figure with `digits` decimal places."""
        db, kl, top1, perplexity = digits
        mean, deviation = self.perplexity_change

        def pair(figure: tuple[float, float], places: int) -> str:
            return f"{figure[0]:.{places}f} ({figure[1]:.{places}f})"

        return (
            pair(self.signal_to_noise_db, db),
            pair(self.kl_nats, kl),
            pair(self.top1, top1),
            f"{mean:+.{perplexity}%} ({deviation:.{perplexity}%})",
        )


def redraw(scheme: str, kernels: str, count: int = DRAWS) -> Redraws:
    """Quantize SmolLM2 once and draw the errors of its activations `count` times."""
    model = quantized(scheme, kernels=kernels)
    return Redraws.of(
        [
            closeness(reference_logits(), model.logits(tokens()), tokens())
            for _ in moved(model.tok_embeddings.weight, count)
        ]
    )


def moved(weight: torch.Tensor, count: int) -> Iterator[None]:
    """Move `weight` by up to its last bit, `count` times; the first time not at all."""
    original = weight.detach().clone()
    # torchao's int8dq as an exact `_int_mm` has it: see `smollm2`.
    with patch("torch._int_mm", exact_int_mm):
        for number in range(count):
            generator = torch.Generator().manual_seed(number)
            noise = torch.rand(original.shape, generator=generator) * 2 - 1
            weight.data.copy_(original * (1 + noise * _LAST_BIT * (number > 0)))
            yield
    weight.data.copy_(original)
