"""The linear layer: the product with a quantized or an unquantized weight.

A quantized weight has its own product. For one token on a CPU, code that is being
compiled writes the product with an unquantized weight as products and sums. The
compiler makes them one loop over the weight at the speed of memory; the library's
matrix-vector product reads it at about half that speed (docs/kernels.md). In all other
cases the library's product is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` (..., K) times the transposed weight (N, K): (..., N) in x's dtype."""
    one_token = x.numel() == x.shape[-1]
    unquantized = type(weight) in (Tensor, nn.Parameter)
    compiling_for_cpu = x.device.type == "cpu" and torch.compiler.is_compiling()
    if not (unquantized and one_token and compiling_for_cpu):
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
