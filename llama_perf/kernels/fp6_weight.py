"""Products with an fp6 weight: y[m, n] = s[n] * sum over k of x[m, k] * v(c[n, k]).

`c` are e3m2 codes, 0b00SEEEMM in words of `packing` (planes of 4 and 2 bits):

    v = (-1)**S * 2**(E - 3) * (1 + M / 4)    E > 0
    v = (-1)**S * 2**-2 * (M / 4)             E = 0, the subnormal values

with neither inf nor NaN, the largest 28. `s` is one float32 scale for each row. Sums
are in float32. The format is that of FP6-LLM, Xia et al. (2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.kernels.cpu import many_tokens
from llama_perf.kernels.cpu.one_token import fused_here, unit_sums
from llama_perf.kernels.packing import from_lanes, parts, unpack

BITS = 6
LARGEST = 28.0


def decode(code: Tensor) -> Tensor:
    """The value of int32 codes, in float32."""
    exponent_mantissa = code & 31
    # A float32 of exponent E - 3 with the two bits of M first; not for E = 0.
    normal = ((exponent_mantissa << 21) + (124 << 23)).view(torch.float32)
    subnormal = exponent_mantissa.to(torch.float32) * 2.0**-4
    value = torch.where(exponent_mantissa < 4, subnormal, normal)
    return torch.where((code & 32) != 0, -value, value)


def encode(values: Tensor) -> Tensor:
    """The nearest codes, int32, of float32 values of at most 28 in magnitude."""
    positive = decode(torch.arange(32, dtype=torch.int32))
    middles = ((positive[1:] + positive[:-1]) / 2).to(values.device)
    code = torch.bucketize(values.abs(), middles, out_int32=True)
    return torch.where(values < 0, code | 32, code)


def dequantized(codes: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """The weight, float32 (rows, columns), from words (B, W, 16), scales (B, 16)."""
    return from_lanes(_blocks(codes, scale, columns), rows)


def reference(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The product by the formula, in float32."""
    return x.float() @ dequantized(codes, scale, rows, x.shape[1]).T


def fp6_weight(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in x's dtype."""
    if fused_here(x):
        sums = unit_sums(x.float(), codes, BITS, decode, (1,))
        return (sums * scale).view(1, -1)[:, :rows].to(x.dtype)
    out: Tensor = fp6_weight_op(x, codes, scale, rows)
    return out


@torch.library.custom_op("llama_perf::fp6_weight", mutates_args=())
def fp6_weight_op(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The operator itself: any M, any device."""
    tokens, columns = x.shape
    (_, _, low), (_, _, high) = parts(codes, BITS, columns)
    arranged = many_tokens.in_slots(x.float(), low.shape[1], 8)
    room = many_tokens.room(low, 8, columns)

    def multiply(blocks: slice) -> Tensor:
        values = many_tokens.fp6_values(low[blocks], high[blocks], room)
        return many_tokens.product(arranged, values)

    sums = many_tokens.by_blocks(tokens, codes, columns, multiply)
    # float16 has a bias of 15, fp6 one of 3.
    sums *= scale.flatten() * 2.0**12
    return sums[:, :rows].to(x.dtype).contiguous()


@fp6_weight_op.register_fake
def _(x: Tensor, _codes: Tensor, _scale: Tensor, rows: int) -> Tensor:
    return x.new_empty((x.shape[0], rows))


@fp6_weight_op.register_kernel("cuda")
def _(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    from llama_perf.kernels.triton.launch_products import fp6_product

    return fp6_product(x, codes, scale, rows)


def _blocks(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    return decode(unpack(codes, BITS, columns)) * scale.unsqueeze(1)
