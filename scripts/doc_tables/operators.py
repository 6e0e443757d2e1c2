"""How exact each scheme's product is, and its table of docs/correctness.md.

A layer of SmolLM2 is quantized and multiplied with random tokens; beside it stands the
same product in float64 with the weight that the layer holds. That weight is read off
the layer's answers to the unit vectors, so that any scheme of any kernels will do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tabulate import tabulate
from torch import Tensor, nn

from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import AUTOQUANT
from scripts.doc_tables.closeness import LIMITS
from scripts.doc_tables.document import place, rows_between
from scripts.doc_tables.rounding import QUANTIZE_TOKENS
from scripts.doc_tables.smollm2 import unquantized

PLACE = place("correctness.md", "operators")
TOKENS = (1, 6, 17)
# Rounding in float32 is 144 dB below a product, and 576 roundings of a sum in any
# direction are 24 times one: 117 dB. The schemes themselves are at 1 to 29 dB.
LEAST_DB = 110.0
# autoquant multiplies with the operators of what it chose; torchao's int8dq rounds the
# tokens in a way of its own before it multiplies, so that no product is the exact one.
SCHEMES = tuple(
    key for key in LIMITS if key[0] not in AUTOQUANT and key != ("int8dq", "torchao")
)


def _layer(scheme: str, kernels: str) -> nn.Linear:
    wqkv = unquantized().get_submodule("layers.14.attention.wqkv")
    assert isinstance(wqkv, nn.Linear), type(wqkv)
    layer = nn.Linear(wqkv.in_features, wqkv.out_features, bias=False)
    layer.weight = nn.Parameter(wqkv.weight.detach().clone(), requires_grad=False)
    make_quantizer(
        scheme, kernels=kernels, device=torch.device("cpu"), dtype=torch.float32
    )(nn.ModuleDict({"wqkv": layer}), "wqkv")
    return layer


def operator_db(scheme: str, kernels: str) -> dict[int, float]:
    """Signal over noise of the product, in dB, by the number of tokens."""
    layer = _layer(scheme, kernels)
    with torch.no_grad():
        weight = layer(torch.eye(layer.in_features)).T
        return {
            tokens: _db(layer, weight, _tokens(tokens, layer.in_features), scheme)
            for tokens in TOKENS
        }


def _tokens(count: int, columns: int) -> Tensor:
    return torch.randn((count, columns), generator=torch.Generator().manual_seed(count))


def _db(layer: nn.Linear, weight: Tensor, x: Tensor, scheme: str) -> float:
    found = layer(x)
    if scheme in QUANTIZE_TOKENS:
        values, scale = QUANTIZE_TOKENS[scheme](x)
        x = values * scale
    exact = x.double() @ weight.double().T
    noise = (found - exact).square().mean()
    return float(10 * torch.log10(exact.square().mean() / noise))


def markdown(found: Mapping[tuple[str, str], Mapping[int, float]]) -> str:
    """The table between the document's two marks; schemes not `found` as they are."""
    rows = _documented_rows()
    cells = [
        [*key, *(f"{found[key][each]:.0f}" for each in TOKENS)]
        if key in found
        else rows[key]
        for key in SCHEMES
    ]
    headers = ("scheme", "kernels", *(f"M = {tokens}, dB" for tokens in TOKENS))
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def documented() -> list[tuple[str, str]]:
    """The schemes of the document's table."""
    return list(_documented_rows())


def _documented_rows() -> dict[tuple[str, str], list[str]]:
    return {(row[0], row[1]): row for row in rows_between(*PLACE)}
