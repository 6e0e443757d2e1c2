"""Products with a float8 weight: y[m, n] = s[n] * sum over k of x[m, k] * v(c[n, k]).

`c` are e4m3 codes, 0bSEEEEMMM as bytes of the words of `packing`:

    v = (-1)**S * 2**(E - 7) * (1 + M / 8)    E > 0
    v = (-1)**S * 2**-6 * (M / 8)             E = 0, the subnormal values

without infinities, the largest 448; E = 15 with M = 7 is NaN, which no quantized
weight has. `s` is one float32 scale for each row. Sums are in float32. The format is
the e4m3 of Micikevicius et al. (2022), torch.float8_e4m3fn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.kernels.cpu import many_tokens
from llama_perf.kernels.cpu.one_token import fused_here, unit_sums
from llama_perf.kernels.packing import from_lanes, unpack

BITS = 8
LARGEST = 448.0
_SIGN_AND_REST = 0x87F00000 - (1 << 32)


def decode(code: Tensor) -> Tensor:
    """The value of a byte of a word, int32 of 0 to 255, in float32."""
    # The sign is copied down, so that a mask leaves it and the rest in the places of
    # a float32's sign, exponent and first mantissa bits: 2**-120 of the value. Values
    # below 2**-6 are subnormal there too, which a processor must not take for zeros.
    bits = ((code << 24) >> 4) & _SIGN_AND_REST
    return bits.view(torch.float32) * 2.0**120


def encode(values: Tensor) -> Tensor:
    """The nearest codes, int32, ties to even, of float32 values; to 448 where more."""
    nearest = values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return nearest.view(torch.uint8).to(torch.int32)


def rounded(values: Tensor) -> Tensor:
    """The values of the nearest codes, float32, of float32 values of at most 448.

    By arithmetic that every device has: compiled for a card below sm_89, a cast to
    float8 is refused.
    """
    exponent = (values.view(torch.int32) >> 23) & 255
    # Steps of an eighth of the power of two below a value, or of a subnormal one.
    step = ((exponent.clamp(min=121) - 3) << 23).view(torch.float32)
    return torch.round(values / step) * step


def dequantized(codes: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """The weight, float32 (rows, columns), from words (B, W, 16), scales (B, 16)."""
    return from_lanes(_blocks(codes, scale, columns), rows)


def reference(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The product by the formula, in float32."""
    return x.float() @ dequantized(codes, scale, rows, x.shape[1]).T


def float8_weight(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in x's dtype."""
    if fused_here(x):
        return one_token(x.float(), codes, scale, rows).to(x.dtype)
    out: Tensor = float8_weight_op(x, codes, scale, rows)
    return out


def one_token(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """The expression that a compiler makes one loop of: float32 (1, K) to (1, rows)."""
    sums = unit_sums(x, codes, BITS, decode, (1,))
    return (sums * scale).view(1, -1)[:, :rows]


@torch.library.custom_op("llama_perf::float8_weight", mutates_args=())
def float8_weight_op(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    rows: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The operator itself: any M, any device; the product in `dtype`, or in x's."""
    tokens, columns = x.shape
    arranged = many_tokens.in_slots(x.float(), codes.shape[1], 4)
    room = many_tokens.room(codes, 4, columns)

    def multiply(blocks: slice) -> Tensor:
        return many_tokens.product(
            arranged, many_tokens.float8_values(codes[blocks], room)
        )

    sums = many_tokens.by_blocks(tokens, codes, columns, multiply)
    # float16 has a bias of 15, e4m3 one of 7.
    sums *= scale.flatten() * 2.0**8
    return sums[:, :rows].to(dtype or x.dtype).contiguous()


@float8_weight_op.register_fake
def _(
    x: Tensor,
    _codes: Tensor,
    _scale: Tensor,
    rows: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return x.new_empty((x.shape[0], rows), dtype=dtype or x.dtype)


@float8_weight_op.register_kernel("cuda")
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    rows: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    from llama_perf.kernels.triton.launch_products import float8_product

    return float8_product(x, codes, scale, rows, dtype=dtype or x.dtype)


def _blocks(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    return decode(unpack(codes, BITS, columns)) * scale.unsqueeze(1)
