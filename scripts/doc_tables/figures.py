"""How close two models' logits or two products of codes are: functions on tensors.

Used by the correctness tests and by `scripts.doc_tables`, which writes the tables of
docs/correctness.md. Knows no model.

Two orders of the same float32 sums differ in the last bits, and a value that close to
the border of two codes gets one of them in one order and the other in the other one:
its code is turned over. How many do is chance, and another processor's chance.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels.products import quantize_tokens

# Positions whose logits are compared at a time.
_AT_ONCE = 16
# The schemes that round activations, and how.
QUANTIZE_TOKENS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8dq": partial(quantize_tokens, activations="int8"),
    "float8dq-row": partial(quantize_tokens, activations="float8-row"),
    "float8dq-tensor": partial(quantize_tokens, activations="float8-tensor"),
}


class Closeness(NamedTuple):
    """One text under a model and under its reference.

    `signal_to_noise_db`: power of the reference's logits over that of the
    difference. `kl_nats`: mean Kullback-Leibler divergence of the next-token
    distribution from the reference's, in nats a token. `top1`: share of positions at
    which both have the same best token. `perplexity_change`: change of the text's
    perplexity, as a share of the reference's.
    """

    signal_to_noise_db: float
    kl_nats: float
    top1: float
    perplexity_change: float


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """Exp of the mean negative log-likelihood of each token but the first.

    `logits` is float (1, length, vocabulary), `tokens` int64 (1, length).
    """
    losses = F.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])
    return math.exp(losses.item())


def _in_parts(*logits: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Float64 of a few positions at a time: that of all would take gigabytes.

    `logits` are (1, length, vocabulary), the parts (positions, vocabulary).
    """
    for parts in zip(*(x[0].split(_AT_ONCE) for x in logits), strict=True):
        yield tuple(part.double() for part in parts)


def token_divergences(reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence from `reference` at each position, float64 (length,).

    Both are (1, length, vocabulary); nats. Each is that of the next-token distribution.
    """
    parts = []
    for both in _in_parts(reference, logits):
        expected, ours = (part.log_softmax(-1) for part in both)
        parts.append((expected.exp() * (expected - ours)).sum(-1))
    return torch.cat(parts)


def closeness(
    reference: Tensor,
    logits: Tensor,
    tokens: Tensor,
    *,
    divergences: Tensor | None = None,
) -> Closeness:
    """Compare `logits` with `reference`, both (1, length, vocabulary), on `tokens`.

    `divergences` are their `token_divergences`, where the caller has them.
    """
    assert reference.shape == logits.shape, f"{reference.shape} and {logits.shape}"
    if divergences is None:
        divergences = token_divergences(reference, logits)
    signal = noise = torch.zeros((), dtype=torch.float64)
    for exact, ours in _in_parts(reference, logits):
        signal = signal + exact.square().sum()
        noise = noise + (ours - exact).square().sum()
    agreed = (reference.argmax(-1) == logits.argmax(-1)).double().mean()
    ratio = perplexity(logits, tokens) / perplexity(reference, tokens)
    return Closeness(
        signal_to_noise_db=float(10 * torch.log10(signal / noise)),
        kl_nats=float(divergences.mean()),
        top1=float(agreed),
        perplexity_change=ratio - 1,
    )


def equal_up_to_turned_codes(result: Tensor, expected: Tensor, exact: Tensor) -> bool:
    """Whether they differ by less than rounding moved `expected` off `exact`.

    `exact` is the same without codes. A step s between codes gives an error of
    s**2 / 12 in the mean, and a code that is turned over one of s**2. So the two sides
    differ by as much only where a twelfth of all codes is turned over. Last bits turn
    over one in thousands; a wrong scale, position or mask moves the whole signal.
    """
    noise = (result.double() - expected).square().mean()
    rounding = (expected.double() - exact).square().mean()
    return bool(noise < rounding)


def exact_int_mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of torch's `_int_mm`, of which a CPU without VNNI has no fast one.

    The same int32 bit for bit: float64 holds every sum below 2**53. Where
    ONEDNN_MAX_CPU_ISA takes VNNI away, torch's own saturates.
    """
    return (a.double() @ b.double()).to(torch.int32)
