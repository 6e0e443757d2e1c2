"""A product with the work around it: the norm before it, the residual or gate behind.

Other libraries' kernels take its place in a fused step; see `fused_own`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from llama_perf.llama.layers import RMSNorm, product


class FusedProduct(Protocol):
    """A kernel of the user's for a linear of a fused step, with what is around it."""

    def __call__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        *,
        norm: RMSNorm | None,
        residual: Tensor | None,
    ) -> Tensor:
        """The product of `x`, (M, K) of at most eight tokens: (M, N) in x's dtype.

        `weights` are one or two of the scheme's tensors, (N, K). With `norm`, which
        has a `weight` (K,) and an `eps`, it is the product of norm(x). Of two weights
        it is silu of the first product times the second one. `residual`, (M, N), is
        added, and may be written and returned.
        """


def in_plain_torch(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    norm: RMSNorm | None,
    residual: Tensor | None,
) -> Tensor:
    """A `FusedProduct` of any weights, operator by operator."""
    if norm is not None:
        x = norm(x)
    out = product(x, weights[0])
    if len(weights) > 1:
        out = F.silu(out) * product(x, weights[1])
    return out if residual is None else out + residual
