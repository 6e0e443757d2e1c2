"""The linear layer: the product with a weight of whatever kind.

A quantized weight brings its own product along. Of a plain one, a token by itself on a
CPU in code that is being compiled is written out as products and sums, which become one
loop over the weight at the speed of memory: the library's product of a matrix and a
vector reads it at about half of that (docs/kernels.md). Everything else is the
library's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` (..., K) times the transposed weight (N, K): (..., N) in x's dtype."""
    one = x.numel() == x.shape[-1]
    plain = type(weight) in (Tensor, nn.Parameter)
    if not (plain and one and x.device.type == "cpu" and torch.compiler.is_compiling()):
        return F.linear(x, weight)
    sums = (weight.float() * x.reshape(1, -1).float()).sum(1)
    return sums.to(x.dtype).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """A linear layer without a bias, by `product`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return product(x, self.weight)
