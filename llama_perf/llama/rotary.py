"""Rotary position embedding on interleaved pairs, with Llama 3.1's scaling.

The angles are computed in float32 from the positions of each call, so no table as long
as the context is needed. Su et al., "RoFormer" (2021); the scaling is Meta's,
published with Llama 3.1.
"""

import math

import torch
from torch import Tensor

from llama_perf.llama.config import ModelConfig

Rotary = tuple[Tensor, Tensor]


def inverse_frequencies(config: ModelConfig, *, device: torch.device) -> Tensor:
    """The angle a position adds to each pair, float32 (head_dim / 2,), radians."""
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
    """Cosines and sines, float32 (..., T, 1, head_dim / 2), of int64 (..., T)."""
    angles = positions.float()[..., None, None] * inverse
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos_sin: Rotary) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of `x`, (batch, T, heads, head_dim)."""
    cos, sin = cos_sin
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
