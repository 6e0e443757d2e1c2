"""How exact each scheme's product is, and its table of docs/correctness.md.

A layer of SmolLM2 is quantized and multiplied with random tokens. The product is
compared with the same product in float64 with the weight that the layer holds. That
weight is read off the layer's answers to the unit vectors, so any scheme of any kernels
will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import AUTOQUANT
from scripts.doc_tables.closeness import LIMITS
from scripts.doc_tables.document import Table, github_table, place, rows_between, select
from scripts.doc_tables.rounding import QUANTIZE_TOKENS
from scripts.doc_tables.smollm2 import unquantized

PLACE = place("correctness.md", "operators")
TOKENS = (1, 6, 17)
# Rounding in float32 is 144 dB below a product, and 576 roundings of a sum in any
# direction are 24 times one: 117 dB. The schemes themselves are at 1 to 29 dB.
MIN_DB = 110.0
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
    product = layer(x)
    if scheme in QUANTIZE_TOKENS:
        values, scale = QUANTIZE_TOKENS[scheme](x)
        x = values * scale
    exact = x.double() @ weight.double().T
    noise = (product - exact).square().mean()
    return float(10 * torch.log10(exact.square().mean() / noise))


def tables(names: Sequence[str]) -> list[Table]:
    """The table of operators, with the rows of the schemes `names` measured anew."""
    chosen = select(names, {scheme for scheme, _ in SCHEMES})
    measured = {key: operator_db(*key) for key in SCHEMES if key[0] in chosen}
    problems = [
        f"{'.'.join(key)}: {min(by_tokens.values()):.0f} dB"
        for key, by_tokens in measured.items()
        if min(by_tokens.values()) < MIN_DB
    ]
    return [Table(place=PLACE, text=markdown(measured), problems=problems)]


def markdown(measured: Mapping[tuple[str, str], Mapping[int, float]]) -> str:
    """The document's table, with the rows in `measured` replaced."""
    documented = _documented_rows()
    cells = [
        [*key, *(f"{measured[key][tokens]:.0f}" for tokens in TOKENS)]
        if key in measured
        else documented[key]
        for key in SCHEMES
    ]
    columns = (f"M = {tokens}, dB" for tokens in TOKENS)
    return github_table(cells, ("scheme", "kernels", *columns))


def documented() -> list[tuple[str, str]]:
    """The schemes of the document's table."""
    return list(_documented_rows())


def _documented_rows() -> dict[tuple[str, str], list[str]]:
    return {(row[0], row[1]): row for row in rows_between(*PLACE)}
