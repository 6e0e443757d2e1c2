"""The layers of a block that hold no cache: linear, norm, feed-forward, rotary.

A quantized weight has its own product. A token on a CPU is multiplied with an
unquantized weight by our own product too, which reads the weight at the speed of
memory; the library's reads it at about half that speed (docs/kernels.md). In all other
cases the library's product is used.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf.devices.all_reduce import sum_over_ranks
from llama_perf.kernels.products import float_product
from llama_perf.llama.config import ModelConfig

Rotary = tuple[Tensor, Tensor]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` (..., K) times the transposed weight (N, K): (..., N) in x's dtype."""
    one_token = x.numel() == x.shape[-1] and x.device.type == "cpu"
    if one_token and type(weight) in (Tensor, nn.Parameter):
        return float_product(x, weight)
    return F.linear(x, weight)


class Linear(nn.Linear):
    """A linear layer, by `product`.

    `cut` says what a rank has of a weight that several ranks share: some "rows", or
    some "columns". None: no other rank has a part of it. The products with columns are
    summed over all ranks. Their bias is added once: the first rank has its values, the
    others have zeros.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        cut: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        # Looking up a parameter takes longer than an attribute.
        self.is_biased = bias
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        out = product(x, self.weight)
        if self.is_biased:
            out = out + self.bias
        return sum_over_ranks(out) if self.cut == "columns" else out


class RMSNorm(nn.Module):
    """x / rms(x) * weight, normalised in float32. Zhang and Sennrich (2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """The gated feed-forward layer (SwiGLU). Shazeer (2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        linear, hidden = partial(Linear, bias=config.mlp_bias), config.intermediate_size
        self.w1 = linear(config.dim, hidden, cut=config.cut_of("feed_forward.w1"))
        self.w3 = linear(config.dim, hidden, cut=config.cut_of("feed_forward.w3"))
        self.w2 = linear(hidden, config.dim, cut=config.cut_of("feed_forward.w2"))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


def inverse_frequencies(config: ModelConfig, *, device: torch.device) -> Tensor:
    """The angle a position adds to each pair, float32 (head_dim / 2,), radians.

    Rotary position embedding: Su et al., "RoFormer" (2021). The scaling is Meta's,
    published with Llama 3.1.
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_base ** (pairs / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    # Long wavelengths are stretched by the factor, short ones unchanged, and those in
    # between interpolated.
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_context / wavelengths - low) / (high - low)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rotary(inverse: Tensor, positions: Tensor) -> Rotary:
    """Cosines and sines, float32 (..., T, 1, head_dim / 2), of int64 (..., T).

    Made in each call, so that no table as long as the context is needed.
    """
    angles = positions.float()[..., None, None] * inverse
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos_sin: Rotary) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of `x`, (batch, T, heads, head_dim)."""
    cos, sin = cos_sin
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
