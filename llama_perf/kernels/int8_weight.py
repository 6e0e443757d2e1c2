"""Products with an int8 weight: y[m, n] = s[n] * sum over k of x[m, k] * q[n, k].

`q` are int8 codes as bytes of the words of `packing`, `s` one float32 scale for each
row. Sums are in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.kernels.cpu.int8_sums import int8_sums
from llama_perf.kernels.cpu.one_token import fused_here, unit_sums
from llama_perf.kernels.packing import from_lanes, unpack

BITS = 8


def decode(code: Tensor) -> Tensor:
    """A byte of a word, int32 of 0 to 255, as the int8 it is, in float32."""
    return ((code << 24) >> 24).to(torch.float32)


def dequantized(codes: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """The weight, float32 (rows, columns), from words (B, W, 16), scales (B, 16)."""
    return from_lanes(_blocks(codes, scale, columns), rows)


def reference(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The product by the formula, in float32."""
    return x.float() @ dequantized(codes, scale, rows, x.shape[1]).T


def int8_weight(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in x's dtype."""
    if fused_here(x):
        sums = unit_sums(x.float(), codes, BITS, decode, (1,))
        return (sums * scale).view(1, -1)[:, :rows].to(x.dtype)
    out: Tensor = int8_weight_op(x, codes, scale, rows)
    return out


@torch.library.custom_op("llama_perf::int8_weight", mutates_args=())
def int8_weight_op(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The operator itself: any M, any device."""
    sums = int8_sums(x, codes)
    return (sums * scale.flatten())[:, :rows].to(x.dtype).contiguous()


@int8_weight_op.register_fake
def _(x: Tensor, _codes: Tensor, _scale: Tensor, rows: int) -> Tensor:
    return x.new_empty((x.shape[0], rows))


@int8_weight_op.register_kernel("cuda")
def _(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    from llama_perf.kernels.triton.launch_products import int8_product

    return int8_product(x, codes, scale, rows)


def _blocks(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    return decode(unpack(codes, BITS, columns)) * scale.unsqueeze(1)
