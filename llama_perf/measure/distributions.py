"""Arithmetic of two models' logits over the same text, in chunks of positions.

All of it is float64: of two distributions that hardly differ, float32 would leave a
divergence of its own rounding. Knows neither models nor texts.
"""

import math

import torch
from torch import Tensor

from llama_perf.errors import ValuesError
from llama_perf.measure.value_check import decibels

# More would be infinite; JSON has no infinity.
_LARGEST_EXPONENT = 700.0


class ComparedLogits:
    """Sums over the positions that `add` was given: a row's logits beside its twin's.

    At a position with several most probable tokens, each of them is as good.
    """

    def __init__(self) -> None:
        self._positions = self._alike = 0
        self._power = self._noise = 0.0
        self._kl = self._surprise = self._twin_surprise = 0.0

    def add(self, row: Tensor, twin: Tensor, following: Tensor) -> None:
        """Count logits (T, V) of both, and int64 (T,) tokens that follow in the text.

        Raises ValuesError where logits hold NaN or infinity.
        """
        row, twin = row.double(), twin.double()
        for name, logits in (("its", row), ("its unquantized twin's", twin)):
            if not bool(torch.isfinite(logits).all()):
                raise ValuesError(f"closeness: {name} logits hold NaN or infinity")
        self._positions += len(row)
        self._power += float(twin.square().sum())
        self._noise += float((row - twin).square().sum())
        self._alike += int((is_best(row, best(twin)) | is_best(twin, best(row))).sum())
        row, twin = row.log_softmax(-1), twin.log_softmax(-1)
        self._kl += float((twin.exp() * (twin - row)).sum())
        at = following[:, None]
        self._surprise -= float(row.gather(1, at).sum())
        self._twin_surprise -= float(twin.gather(1, at).sum())

    @property
    def db(self) -> float:
        """The power of the twin's logits over that of the difference, in decibels."""
        return decibels(self._power / self._noise if self._noise else math.inf)

    @property
    def kl_nats(self) -> float:
        """The mean divergence of the row's distribution from the twin's."""
        return max(self._kl / self._positions, 0.0)

    @property
    def top1_share(self) -> float:
        """The share of positions at which both have the same most probable token."""
        return self._alike / self._positions

    @property
    def perplexity(self) -> float:
        """The row's on the text."""
        return self._exp(self._surprise)

    @property
    def twin_perplexity(self) -> float:
        """The twin's on the text."""
        return self._exp(self._twin_surprise)

    def _exp(self, surprise: float) -> float:
        return math.exp(min(surprise / self._positions, _LARGEST_EXPONENT))


def best(logits: Tensor) -> Tensor:
    """The first most probable token of each position, (T, 1)."""
    return logits.argmax(-1, keepdim=True)


def is_best(logits: Tensor, tokens: Tensor) -> Tensor:
    """Whether no token is more probable than that of `tokens` (T, 1); bool (T,)."""
    return logits.gather(1, tokens).squeeze(1) == logits.amax(-1)
