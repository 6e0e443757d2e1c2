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

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn

from llama_perf.llama.transformer import Transformer
from scripts.doc_tables.closeness import LIMITS
from scripts.doc_tables.document import (
    Table,
    github_table,
    place,
    rows_between,
    select,
    show_progress,
)
from scripts.doc_tables.figures import token_divergences
from scripts.doc_tables.rounding import exact_int_mm
from scripts.doc_tables.smollm2 import (
    quantized,
    reference_logits,
    scheme_figures,
    tokens,
    unquantized,
)

PLACE = place("correctness.md", "twins")
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
# The others search scales for minutes. `python -m scripts.doc_tables twins` compares
# all of them.
QUICK = tuple(scheme for scheme in TWINS if not scheme.startswith("int4wo"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Twins:
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
    return Twins(
        native_nats=native.mean().item(),
        torchao_nats=torchao.mean().item(),
        errors=(difference.mean() / error).item(),
    )


def twins(scheme: str) -> Twins:
    """Quantize SmolLM2 both ways and compare."""
    return compare_twins(
        *(_divergences(scheme, kernels) for kernels in ("native", "torchao"))
    )


def _divergences(scheme: str, kernels: str) -> Tensor:
    if scheme in QUICK and scheme != "int8dq":
        return scheme_figures(scheme, kernels, None, "unquantized").divergences
    model = quantized(scheme, kernels=kernels)
    _unpack(model, dequantized if scheme == "int8dq" else answers)
    return token_divergences(reference_logits(), model.logits(tokens()))


def _unpack(model: Transformer, weight_of: Callable[[nn.Linear], Tensor]) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                weight = weight_of(module)
            module.weight = nn.Parameter(weight, requires_grad=False)


def answers(layer: nn.Linear) -> Tensor:
    """The weight (N, K) read off the answers to the unit vectors."""
    product: Tensor = layer(torch.eye(layer.in_features))
    return product.T.contiguous()


def dequantized(layer: nn.Linear) -> Tensor:
    """The weight (N, K) as the tensor itself says: int8dq would round unit vectors."""
    weight: Tensor = layer.weight.dequantize()
    return weight


def products_ratio(scheme: str, blocks: Sequence[int] = range(30)) -> float:
    """Noise of native products over torchao's, on the same activations.

    Each linear of `blocks` multiplies what it gets in the unquantized model; noise is
    the mean square off the unquantized product. The geometric mean over the linears:
    on one processor and another it is the same to 1e-4.
    """
    sides = [
        dict(quantized(scheme, kernels=kernels).named_modules())
        for kernels in ("native", "torchao")
    ]
    logs: list[float] = []

    def compare(name: str, x: Tensor, exact: Tensor) -> None:
        native, torchao = ((side[name](x) - exact).square().mean() for side in sides)
        logs.append(float((native / torchao).log()))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda _module, inputs, exact: compare(name, inputs[0], exact)

    model = unquantized()
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and any(name.startswith(f"layers.{block}.") for block in blocks)
    ]
    try:
        with patch("torch._int_mm", exact_int_mm):
            model.logits(tokens())
    finally:
        for handle in handles:
            handle.remove()
    assert len(logs) == 5 * len(blocks), f"{len(logs)} products"
    return math.exp(sum(logs) / len(logs))


def tables(names: Sequence[str]) -> list[Table]:
    """The table of twins, with the schemes `names` compared anew."""
    pairs = {}
    for scheme in select(names, TWINS):
        show_progress(scheme)
        pairs[scheme] = twins(scheme)
    problems = [
        f"{scheme}: native is further off than torchao"
        for scheme, pair in pairs.items()
        if pair.further
    ]
    return [Table(place=PLACE, text=markdown(pairs), problems=problems)]


def markdown(pairs: Mapping[str, Twins]) -> str:
    """The document's table, with the rows of the schemes in `pairs` replaced."""
    rows = _documented_rows()
    cells = [
        _cells(scheme, pairs[scheme]) if scheme in pairs else rows[scheme]
        for scheme in TWINS
    ]
    return github_table(
        cells, ("scheme", "KL native", "KL torchao", "native less torchao", "errors")
    )


def _cells(scheme: str, pair: Twins) -> list[str]:
    return [
        scheme,
        f"{pair.native_nats:.5f}",
        f"{pair.torchao_nats:.5f}",
        f"{pair.native_nats - pair.torchao_nats:+.5f}",
        f"{pair.errors:+.1f}",
    ]


def documented() -> dict[str, float]:
    """The errors by which the document's table has native further than torchao."""
    return {scheme: float(row[4]) for scheme, row in _documented_rows().items()}


def _documented_rows() -> dict[str, list[str]]:
    return {row[0]: row for row in rows_between(*PLACE)}
