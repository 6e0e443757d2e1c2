"""Each native scheme compared with torchao's twin on SmolLM2, and their table.

Compared over the whole text and position by position: both find the same positions
hard, and on a short text one may be the closer by chance. Two kinds of schemes are
compared by their weights, multiplied in float32:

- torchao's int4 takes a CPU as long for each token of a text as for a step of decoding.
  Its weights are read off the layers' answers to the unit vectors, and how exact the
  products are is measured by `operators`.
- int8dq rounds activations, and two models that do so differ by chance, by more than
  their weights do (`redraws`). `products_ratio` compares how both round the same ones.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from scripts.doc_tables import smollm2
from scripts.doc_tables.closeness import LIMITS
from scripts.doc_tables.document import Place, Table
from scripts.doc_tables.figures import exact_int_mm, token_divergences
from scripts.doc_tables.smollm2 import quantized, tokens, unquantized

MAX_ERRORS = 2.0
# Of int8dq: a native step between codes is a 127th of the largest magnitude, torchao's
# a 127.5th, and the noise of rounding grows with the step's square.
MAX_PRODUCTS_RATIO = (127.5 / 127) ** 2
# Layers that hold the same weights differ only by rounding, where two standard errors
# are nothing rare: on SmolLM2 they move the mean by 4e-8 nats.
_ROUNDING_NATS = 1e-6
TWINS = tuple(
    scheme
    for scheme, kernels in LIMITS
    if kernels == "torchao" and (scheme, "native") in LIMITS
)
# Compared by their logits, as they are. `python -m scripts.doc_tables twins` compares
# all; int4wo searches scales for minutes.
QUICK = tuple(it for it in TWINS if it != "int8dq" and not it.startswith("int4wo"))


class Twins(NamedTuple):
    """Mean divergence from the unquantized model, nats, and how the two differ.

    `errors`: native's mean less torchao's, in standard errors of the difference.
    """

    native_nats: float
    torchao_nats: float
    errors: float

    @property
    def further(self) -> bool:
        """Whether native is further from the unquantized model than torchao."""
        return self.errors > MAX_ERRORS


def compare_twins(native: Tensor, torchao: Tensor) -> Twins:
    """From the divergences of both at each position."""
    difference = native - torchao
    error = (difference.std() / len(difference) ** 0.5).clamp(min=_ROUNDING_NATS)
    figures = (native.mean(), torchao.mean(), difference.mean() / error)
    return Twins(*map(float, figures))


def twins(scheme: str) -> Twins:
    """Quantize SmolLM2 both ways and compare."""
    pair = (_divergences(scheme, kernels) for kernels in ("native", "torchao"))
    return compare_twins(*pair)


def _divergences(scheme: str, kernels: str) -> Tensor:
    if scheme in QUICK:
        return smollm2.scheme_figures(scheme, kernels, None, "unquantized")[1]
    model = quantized(scheme, kernels=kernels)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight: Any = module.weight
            with torch.no_grad():
                if scheme == "int8dq":
                    # The linear would round unit vectors; its tensor has the values.
                    weight = weight.dequantize()
                else:
                    weight = module(torch.eye(module.in_features)).T.contiguous()
            module.weight = nn.Parameter(weight, requires_grad=False)
    return token_divergences(smollm2.reference_logits(), model.logits(tokens()))


def products_ratio(scheme: str, blocks: Sequence[int] = range(30)) -> float:
    """Noise of native products over torchao's, on the same activations.

    Each linear of `blocks` multiplies what it gets in the unquantized model; noise is
    the mean square off the unquantized product. The geometric mean over the linears:
    on one processor and another it is the same to 1e-4.
    """
    pair = [quantized(scheme, kernels=kernels) for kernels in ("native", "torchao")]
    prefixes = tuple(f"layers.{block}." for block in blocks)
    logs: list[float] = []

    def compare(name: str, _module: nn.Module, inputs: Any, exact: Tensor) -> None:
        products = (model.get_submodule(name)(*inputs) for model in pair)
        native, torchao = ((x - exact).square().mean() for x in products)
        logs.append(float((native / torchao).log()))

    with patch("torch._int_mm", exact_int_mm), ExitStack() as hooks:
        for name, module in unquantized().named_modules():
            if isinstance(module, nn.Linear) and name.startswith(prefixes):
                hook = module.register_forward_hook(partial(compare, name))
                hooks.enter_context(hook)
        unquantized().logits(tokens())
    assert len(logs) == 5 * len(blocks), f"{len(logs)} products"
    return math.exp(sum(logs) / len(logs))


def _draw(scheme: str) -> tuple[list[str], list[str]]:
    pair = twins(scheme)
    native, torchao, errors = pair
    cells = [f"{native:.5f}", f"{torchao:.5f}", f"{native - torchao:+.5f}"]
    problems = ["native is further off than torchao"] if pair.further else []
    return [*cells, f"{errors:+.1f}"], problems


TABLE = Table(
    place=Place("correctness.md", "twins"),
    headers=("scheme", "KL native", "KL torchao", "native less torchao", "errors"),
    keys=[(scheme,) for scheme in TWINS],
    draw=_draw,
)
