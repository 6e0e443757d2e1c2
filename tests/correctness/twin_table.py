"""Each native scheme beside torchao's twin on SmolLM2, and the table of the two.

Compared over the whole text and position by position: both find the same positions
hard, and on a short text one may be the closer by chance. torchao's int4 takes a CPU as
long for each token of a text as for a step of decoding, so of int4 the weights stand
in for both layers, read off their answers to the unit vectors and multiplied in
float32: how exact the products are is `operator_table`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from closeness_table import DOCUMENT, LIMITS
from smollm2 import quantized, reference_logits, scheme_figures, tokens
from tabulate import tabulate
from torch import Tensor, nn

from llama_perf.closeness import token_divergences
from llama_perf.document import rows_between
from llama_perf.model.transformer import Transformer

BEGIN, END = "<!-- twins: begin -->", "<!-- twins: end -->"
MOST_ERRORS = 2.0
# Layers that hold the same weights differ by roundings alone, of which two errors are
# no rare thing: on SmolLM2 they move the mean by 4e-8 nats.
_ROUNDING_NATS = 1e-6
TWINS = tuple(
    scheme
    for scheme, kernels in LIMITS
    if kernels == "torchao" and (scheme, "native") in LIMITS
)
# The rest search scales for minutes; `scripts/closeness --twins` compares them all.
QUICK = tuple(scheme for scheme in TWINS if not scheme.startswith("int4wo"))
_HEADERS = ("scheme", "KL native", "KL torchao", "native less torchao", "errors")


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
        return self.errors > MOST_ERRORS


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
        *(_divergences(scheme, each) for each in ("native", "torchao"))
    )


def _divergences(scheme: str, kernels: str) -> Tensor:
    if scheme in QUICK:
        return scheme_figures(scheme, kernels, None, "unquantized").divergences
    model = quantized(scheme, kernels=kernels)
    _unpack(model)
    return token_divergences(reference_logits(), model.logits(tokens()))


def _unpack(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                weight = module(torch.eye(module.in_features)).T.contiguous()
            module.weight = nn.Parameter(weight, requires_grad=False)


def markdown(found: Mapping[str, Twins]) -> str:
    """The table between the document's two marks; schemes not `found` as they are."""
    rows = _documented_rows()
    cells = [
        _cells(scheme, found[scheme]) if scheme in found else rows[scheme]
        for scheme in TWINS
    ]
    return tabulate(cells, headers=_HEADERS, tablefmt="github", disable_numparse=True)


def _cells(scheme: str, found: Twins) -> list[str]:
    return [
        scheme,
        f"{found.native_nats:.5f}",
        f"{found.torchao_nats:.5f}",
        f"{found.native_nats - found.torchao_nats:+.5f}",
        f"{found.errors:+.1f}",
    ]


def documented() -> dict[str, float]:
    """The errors by which the document's table has native further than torchao."""
    return {scheme: float(row[4]) for scheme, row in _documented_rows().items()}


def _documented_rows() -> dict[str, list[str]]:
    return {row[0]: row for row in rows_between(DOCUMENT, BEGIN, END)}
