"""Products with one scale a row: y[m, n] = s[n] * sum over k of x[m, k] * v(c[n, k]).

`c` are codes in words of `packing`, `s` float32 scales, `v` the value of a code:

    INT8    the byte as it is
    FP6     e3m2, 0b00SEEEMM in planes of 4 and 2 bits, the largest 28, no inf, no NaN
            v = (-1)**S * 2**(E - 3) * (1 + M / 4)    E > 0
            v = (-1)**S * 2**-2 * (M / 4)             E = 0, the subnormal values
    FLOAT8  e4m3, 0bSEEEEMMM in bytes, the largest 448, no inf
            v = (-1)**S * 2**(E - 7) * (1 + M / 8)    E > 0
            v = (-1)**S * 2**-6 * (M / 8)             E = 0, the subnormal values
            E = 15 with M = 7 is NaN, which no quantized weight has

Sums are in float32. FP6 is the format of FP6-LLM, Xia et al. (2024); FLOAT8 is the e4m3
of Micikevicius et al. (2022), torch.float8_e4m3fn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from llama_perf.kernels import weight
from llama_perf.kernels.cpu import many_tokens
from llama_perf.kernels.cpu.many_tokens import int8_sums
from llama_perf.kernels.cpu.one_token import fused_here, unit_sums
from llama_perf.kernels.packing import from_lanes, parts, unpack
from llama_perf.kernels.weight import Packed

_SIGN_AND_REST = 0x87F00000 - (1 << 32)


def decode_int8(code: Tensor) -> Tensor:
    """The value, float32, of a byte of a word, int32 of 0 to 255."""
    return ((code << 24) >> 24).to(torch.float32)


def decode_fp6(code: Tensor) -> Tensor:
    """The value, float32, of int32 codes of 0 to 63."""
    exponent_mantissa = code & 31
    # A float32 of exponent E - 3 with the two bits of M first; not for E = 0.
    normal = ((exponent_mantissa << 21) + (124 << 23)).view(torch.float32)
    subnormal = exponent_mantissa.to(torch.float32) * 2.0**-4
    value = torch.where(exponent_mantissa < 4, subnormal, normal)
    return torch.where((code & 32) != 0, -value, value)


def encode_fp6(values: Tensor) -> Tensor:
    """The nearest codes, int32, of float32 values of at most 28 in magnitude."""
    positive = decode_fp6(torch.arange(32, dtype=torch.int32))
    middles = ((positive[1:] + positive[:-1]) / 2).to(values.device)
    code = torch.bucketize(values.abs(), middles, out_int32=True)
    return torch.where(values < 0, code | 32, code)


def decode_float8(code: Tensor) -> Tensor:
    """The value, float32, of a byte of a word, int32 of 0 to 255."""
    # The sign is copied down, so that a mask leaves it and the rest in the places of
    # a float32's sign, exponent and first mantissa bits: 2**-120 of the value. Values
    # below 2**-6 are subnormal there too, which a processor must not take for zeros.
    bits = ((code << 24) >> 4) & _SIGN_AND_REST
    return bits.view(torch.float32) * 2.0**120


def encode_float8(values: Tensor) -> Tensor:
    """The nearest codes, int32, ties to even, of float32 values; to 448 where more."""
    largest = FLOAT8.largest
    nearest = values.clamp(-largest, largest).to(torch.float8_e4m3fn)
    return nearest.view(torch.uint8).to(torch.int32)


def round_to_float8(values: Tensor) -> Tensor:
    """The values of the nearest codes, float32, of float32 values of at most 448.

    By arithmetic that every device has: compiled for a card below sm_89, a cast to
    float8 is refused.
    """
    exponent = (values.view(torch.int32) >> 23) & 255
    # Steps of an eighth of the power of two below a value, or of a subnormal one.
    step = ((exponent.clamp(min=121) - 3) << 23).view(torch.float32)
    return torch.round(values / step) * step


@dataclass(frozen=True, slots=True)
class RowScaled:
    """A format of codes with one scale for each row.

    `largest` is the largest value of a code, `kind` names `decode` to the kernels;
    `operator` is the product itself: any M, any device, in a dtype or in x's.
    """

    bits: int
    largest: float
    decode: Callable[[Tensor], Tensor]
    kind: int
    operator: CustomOpDef

    def product(self, x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
        """`x` (M, K) times the transposed weight, (M, rows), in x's dtype."""
        if fused_here(x):
            return self.one_token(x, codes, scale, rows).to(x.dtype)
        out: Tensor = self.operator(x, codes, scale, rows)
        return out

    def one_token(self, x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
        """The expression that a compiler turns into one loop, (1, K) to (1, rows)."""
        sums = unit_sums(x.float(), codes, self.bits, self.decode, (1,))
        return (sums * scale).view(1, -1)[:, :rows]

    def dequantized(
        self, codes: Tensor, scale: Tensor, rows: int, columns: int
    ) -> Tensor:
        """The weight, float32 (rows, columns), of words (B, W, 16), scales (B, 16)."""
        values = self.decode(unpack(codes, self.bits, columns))
        return from_lanes(values * scale.unsqueeze(1), rows)

    def packed(self, rows: int, columns: int, codes: Tensor, scale: Tensor) -> Packed:
        """The weight as the kernels on CUDA take it."""
        bits, kind = self.bits, self.kind
        return Packed(rows, columns, codes, scale, scale, bits=bits, decode=kind)


def _operator(
    name: str, sums: Callable[[Tensor, Tensor], Tensor], unit: float = 1.0
) -> CustomOpDef:
    """The operator of a format, by its `sums` on a CPU, in float32 (M, 16 * B).

    These are sums of values over `unit`, and are overwritten.
    """

    @torch.library.custom_op(f"llama_perf::{name}_weight", mutates_args=())
    def operator(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        rows: int,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        scaled = sums(x, codes).mul_((scale * unit).flatten())
        return scaled[:, :rows].to(dtype or x.dtype).contiguous()

    @operator.register_fake
    def _(x: Tensor, _c: Tensor, _s: Tensor, rows: int, dtype: Any = None) -> Tensor:
        return x.new_empty((len(x), rows), dtype=dtype or x.dtype)

    @operator.register_kernel("cuda")
    def _(x: Tensor, c: Tensor, scale: Tensor, rows: int, dtype: Any = None) -> Tensor:
        from llama_perf.kernels.triton.launch_products import product

        packed = FORMATS[name].packed(rows, x.shape[1], c, scale)
        return product(x, packed, dtype=dtype)

    return operator


def _fp6_sums(x: Tensor, codes: Tensor) -> Tensor:
    tokens, columns = x.shape
    (_, _, low), (_, _, high) = parts(codes, FP6.bits, columns)
    arranged = many_tokens.in_slots(x.float(), low.shape[1], 8)
    room = many_tokens.room(low, 8, columns)

    def multiply(blocks: slice) -> Tensor:
        values = many_tokens.fp6_values(low[blocks], high[blocks], room)
        return many_tokens.product(arranged, values)

    return many_tokens.by_blocks(tokens, codes, columns, multiply)


def _float8_sums(x: Tensor, codes: Tensor) -> Tensor:
    tokens, columns = x.shape
    arranged = many_tokens.in_slots(x.float(), codes.shape[1], 4)
    room = many_tokens.room(codes, 4, columns)

    def multiply(blocks: slice) -> Tensor:
        values = many_tokens.float8_values(codes[blocks], room)
        return many_tokens.product(arranged, values)

    return many_tokens.by_blocks(tokens, codes, columns, multiply)


INT8 = RowScaled(8, 127.0, decode_int8, weight.INT8, _operator("int8", int8_sums))
# float16 has a bias of 15, fp6 one of 3, e4m3 one of 7.
_FP6 = _operator("fp6", _fp6_sums, 2.0**12)
FP6 = RowScaled(6, 28.0, decode_fp6, weight.FP6, _FP6)
_FLOAT8 = _operator("float8", _float8_sums, 2.0**8)
FLOAT8 = RowScaled(8, 448.0, decode_float8, weight.FLOAT8, _FLOAT8)
FORMATS = {"int8": INT8, "fp6": FP6, "float8": FLOAT8}
