"""How exact each scheme's product is, and its table of docs/correctness.md.

A layer of SmolLM2 is quantized and multiplied with random tokens. The product is
compared with the same product in float64 with the weight that the layer holds. That
weight is read off the layer's answers to the unit vectors, so any scheme of any kernels
will do.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import AUTOQUANT
from scripts.doc_tables.closeness import LIMITS
from scripts.doc_tables.document import Place, Table
from scripts.doc_tables.figures import QUANTIZE_TOKENS
from scripts.doc_tables.smollm2 import unquantized

TOKENS = (1, 6, 17)
# Rounding in float32 is 144 dB below a product, and 576 roundings of a sum in any
# direction are 24 times one: 117 dB. The schemes themselves are at 1 to 29 dB.
MIN_DB = 110.0
# autoquant multiplies with the operators of what it chose; torchao's int8dq rounds the
# tokens in a way of its own before it multiplies, so that no product is the exact one.
SCHEMES = tuple(
    key for key in LIMITS if key[0] not in AUTOQUANT and key != ("int8dq", "torchao")
)


def operator_db(scheme: str, kernels: str) -> dict[int, float]:
    """Signal over noise of the product, in dB, by the number of tokens."""
    wqkv = unquantized().get_submodule("layers.14.attention.wqkv")
    layers = nn.ModuleDict({"wqkv": deepcopy(wqkv)})
    cpu = torch.device("cpu")
    quantize = make_quantizer(scheme, kernels=kernels, device=cpu, dtype=torch.float32)
    quantize(layers, "wqkv")
    layer: Any = layers["wqkv"]
    figures = {}
    with torch.no_grad():
        weight = layer(torch.eye(layer.in_features)).T.double()
        for count in TOKENS:
            generator = torch.Generator().manual_seed(count)
            x = torch.randn((count, layer.in_features), generator=generator)
            product = layer(x)
            if scheme in QUANTIZE_TOKENS:
                values, scale = QUANTIZE_TOKENS[scheme](x)
                x = values * scale
            exact = x.double() @ weight.T
            noise = (product - exact).square().mean()
            figures[count] = float(10 * torch.log10(exact.square().mean() / noise))
    return figures


def _draw(scheme: str, kernels: str) -> tuple[list[str], list[str]]:
    figures = operator_db(scheme, kernels).values()
    worst = min(figures)
    problems = [f"{worst:.0f} dB"] if worst < MIN_DB else []
    return [f"{db:.0f}" for db in figures], problems


TABLE = Table(
    place=Place("correctness.md", "operators"),
    headers=("scheme", "kernels", *(f"M = {tokens}, dB" for tokens in TOKENS)),
    keys=SCHEMES,
    draw=_draw,
)
