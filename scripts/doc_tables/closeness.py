"""Limits of closeness for every scheme, and two tables of docs/correctness.md.

A scheme that rounds only weights has the same figures on every processor. Its limits in
`closeness_limits.csv` are the measured figures with a margin for other versions of
libraries: 1.5 dB, half as much KL divergence again, and two standard errors over the n
tokens compared for top-1 agreement and perplexity. These errors are
sqrt(p (1 - p) / n) for an agreement of p, and sqrt(2 KL / n) for the perplexity: the
log of the ratio of two close distributions has a variance of twice their divergence.
Where the perplexity grows a hundredfold, as from pruning, they are errors of its
logarithm.

A scheme that rounds activations draws its errors anew on each processor. Two processors
add the same numbers in two orders, so that their activations differ in the last bits.
With weights alone rounded the logits are then the same to 1e-6; rounded activations
turn over some of the codes in every layer, and each turned code turns over others after
it. Here one processor draws them many times (`redraws.csv`): each draw moves the
embedding by up to a float32 rounding. The limits are the mean of these draws, moved by
`DEVIATIONS` standard deviations.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from llama_perf.rows.schemes import AUTOQUANT
from scripts.doc_tables.document import Key, Place, Table
from scripts.doc_tables.figures import Closeness, exact_int_mm
from scripts.doc_tables.smollm2 import compared, quantized, scheme_figures

FIGURES = ["dB", "at least", "KL (nats)", "at most", "top-1", "at least"]
FIGURES += ["perplexity", "within"]
"""The headers of each figure and of its limit."""
# Figures must not be below (-1) or above (1) their limits, which are whole steps.
_SIGNS, _STEPS = np.array((-1, 1, -1, 1)), np.array((1e-1, 1e-4, 1e-2, 1e-3))
DRAWS = 16
# The mean and the deviation of 16 draws are themselves uncertain: of a normal
# distribution, with 95 % confidence one draw in 50 000 at most is further off than this
# (its tolerance interval).
DEVIATIONS = 6.0
# What a weight of about 1 changes by where its last bit does.
_LAST_BIT = 2.0**-22


class Redraws(NamedTuple):
    """Mean and standard deviation of each figure over many draws."""

    means: Closeness
    deviations: Closeness

    @classmethod
    def of(cls, draws: list[Closeness]) -> "Redraws":
        """Of several draws."""
        figures = torch.tensor(draws, dtype=torch.float64)
        parts = figures.mean(0).tolist(), figures.std(0).tolist()
        return cls(*(Closeness(*part) for part in parts))

    def cells(self, *formats: str) -> list[str]:
        """Mean and deviation of each figure, such as 0.868 (0.012) for ".3f"."""
        return [
            f"{mean:{'+' * form.endswith('%')}{form}} ({deviation:{form}})"
            for mean, deviation, form in zip(*self, formats, strict=True)
        ]


class Limits(NamedTuple):
    """The smallest or largest figures that a scheme may have.

    `length`: the number of tokens of the fixed text that are compared; None for all.
    """

    edges: Closeness
    length: int | None = None

    @classmethod
    def over(cls, redraws: Redraws) -> "Limits":
        """Limits that hold on every processor, rounded away from the mean."""
        means = np.array(_magnitudes(redraws.means))
        beyond = _SIGNS * means + DEVIATIONS * np.array(redraws.deviations)
        # An error in the last bit of a float is no step further.
        steps = np.ceil(np.round(beyond / _STEPS, 6))
        return cls(Closeness(*(_SIGNS * steps * _STEPS).round(6).tolist()))

    def broken_by(self, figures: Closeness) -> list[str]:
        """The limits that `figures` break, in words; empty if all of them hold."""
        magnitudes = _magnitudes(figures)
        return [
            f"{name} limit {edge}: {figures}"
            for name, sign, edge, figure in zip(
                FIGURES[::2], _SIGNS, self.edges, magnitudes, strict=True
            )
            if not sign * figure <= sign * edge
        ]

    def cells(self) -> list[str]:
        """The limits as the document has them."""
        return "{:.1f} {:.4f} {:.2f} {:.1%}".format(*self.edges).split()

    def beside(self, figures: Iterable[str]) -> list[str]:
        """The texts of figures, each with its limit."""
        return list(chain(*zip(figures, self.cells(), strict=True)))


def _magnitudes(figures: Closeness) -> Closeness:
    return figures._replace(perplexity_change=abs(figures.perplexity_change))


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


def _lines(name: str) -> list[list[str]]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines()))[1:]


def _limits_of(key: Key, edges: Sequence[str], length: str) -> Limits:
    if not edges[0]:
        return Limits.over(REDRAWN[key[:2]])
    return Limits(Closeness(*map(float, edges)), int(length) if length else None)


REDRAWN: Mapping[Key, Redraws] = {
    (scheme, kernels): Redraws(
        Closeness(*map(float, figures[::2])), Closeness(*map(float, figures[1::2]))
    )
    for scheme, kernels, *figures in _lines("redraws.csv")
}
# SmolLM2's K of 576 and 1536 admits groups of 32 and 64. torchao's int4 takes a CPU as
# long for each token of a text as for a step of decoding, so it and its native twins
# are compared on the first tokens only. Pruning without training hurts by itself, so a
# pruned scheme is also compared with the pruned model.
ROWS: Mapping[Key, Limits] = {
    tuple(line[:3]): _limits_of(tuple(line[:3]), line[3:7], line[7])
    for line in _lines("closeness_limits.csv")
}
"""By (scheme, kernels, the model that they are compared with)."""
LIMITS: Mapping[Key, Limits] = {
    key[:2]: limits for key, limits in ROWS.items() if key[2] == "unquantized"
}
DEFAULT = LIMITS["uintx-4-64", "native"]
"""The limits of a scheme that has none in closeness_limits.csv."""
# `make test-all` compares them: torchao's int4 takes half a minute, its own search for
# scales two, a native one a quarter. uintx-2-8 and mixtures run the code of the others.
# For each `make test` has its golden tokens, its products, or the parts of a mixture.
SLOW = {(f"int4wo-{size}", "torchao") for size in ("32", "64", "32-hqq", "64-hqq")}
SLOW |= {(f"int4wo-{size}-hqq", "native") for size in (32, 64)}
SLOW |= {(name, "native") for name in ("uintx-2-8", *AUTOQUANT)}


def tokens_cell(limits: Limits) -> str:
    """How much of the text is compared."""
    return "all" if limits.length is None else f"first {limits.length}"


def _draw(scheme: str, kernels: str, reference: str) -> tuple[list[str], list[str]]:
    limits = ROWS[scheme, kernels, reference]
    figures, _ = scheme_figures(scheme, kernels, limits.length, reference)
    texts = "{:.1f} {:.4f} {:.3f} {:+.2%}".format(*figures).split()
    return [tokens_cell(limits), *limits.beside(texts)], limits.broken_by(figures)


TABLE = Table(
    place=Place("correctness.md", "closeness"),
    headers=("scheme", "kernels", "compared with", "tokens", *FIGURES),
    keys=ROWS,
    draw=_draw,
)


def redraw_cells(redraws: Redraws) -> list[str]:
    """As the table of redraws has them."""
    return redraws.cells(".2f", ".4f", ".3f", ".1%")


def _redraw(scheme: str, kernels: str) -> tuple[list[str], list[str]]:
    """Quantize SmolLM2 once and draw the errors of its activations many times."""
    model = quantized(scheme, kernels=kernels)
    draws = [compared(model) for _ in moved(model.tok_embeddings.weight, DRAWS)]
    return redraw_cells(Redraws.of(draws)), []


REDRAWS = Table(
    place=Place("correctness.md", "redraws"),
    headers=("scheme", "kernels", *FIGURES[::2]),
    keys=REDRAWN,
    draw=_redraw,
)
