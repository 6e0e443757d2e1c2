"""Products with one scale a row: y[m, n] = s[n] * sum over k of x[m, k] * v(c[n, k]).

`c` are codes in words of `packing`, `s` float32 scales, `v` the value of a code:

    INT8    the byte as it is
    FP6     e3m2, 0b00SEEEMM in planes of 4 and 2 bits, the largest 28, no inf, no NaN;
            of four columns each sign is packed with the next code, the last one's with
            the first: bits that float16 has three places apart are so in memory
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

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import cpu, packing
from llama_perf.kernels import weight as packed
from llama_perf.kernels.weight import Packed

_SIGN_AND_REST = 0x87F00000 - (1 << 32)


def signed(code: Tensor) -> Tensor:
    """The value, int32, of a byte of a word, int32 of 0 to 255."""
    return (code << 24) >> 24


def decode_int8(code: Tensor) -> Tensor:
    """The same in float32."""
    return signed(code).float()


def decode_fp6(code: Tensor) -> Tensor:
    """The value, float32, of int32 codes of 0 to 63."""
    exponent_mantissa = code & 31
    # A float32 of exponent E - 3 with the two bits of M first; not for E = 0.
    normal = ((exponent_mantissa << 21) + (124 << 23)).view(torch.float32)
    subnormal = exponent_mantissa.to(torch.float32) * 2.0**-4
    value = torch.where(exponent_mantissa < 4, subnormal, normal)
    return torch.where((code & 32) != 0, -value, value)


def encode_int8(values: Tensor) -> Tensor:
    """The nearest codes, int32, of float32 values of at most 127 in magnitude."""
    return torch.round(values).clamp(-127, 127).int()


def encode_fp6(values: Tensor) -> Tensor:
    """The nearest codes, int32, ties towards 0, of float32 values of at most 28."""
    size = values.abs()
    # Exponent and two bits of the mantissa, with a bias of 127 in place of 3. What is
    # added rounds up from more than a half.
    normal = (size.view(torch.int32) + (2**20 - 1) >> 21) - (124 << 2)
    subnormal = torch.ceil(size * 2**4 - 0.5).to(torch.int32)
    code = torch.where(size < 2**-2, subnormal, normal)
    return code | (values < 0).to(torch.int32) << 5


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

    `decode` is known to the kernels as `kind`; `encode` takes values of at most
    `largest`. Codes lie in words of `packing`, `signs_apart` with those of four columns
    moved on. `values` gives those of some words of each plane, for many tokens on a
    CPU: float32, over `unit`.
    """

    kind: int
    bits: int
    largest: float
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    values: Callable[..., Tensor] | None = None
    unit: float = 1.0
    signs_apart: bool = False

    def pack(self, codes: Tensor) -> Tensor:
        """Codes (N, K) to int32 words (B, W, 16)."""
        if self.signs_apart:
            codes = self._with_signs_moved(codes, 1)
        return packing.pack(codes, self.bits)

    def unpack(self, words: Tensor, columns: int) -> Tensor:
        """Words (B, W, 16) back to int32 codes (B, K, 16)."""
        if not self.signs_apart:
            return packing.unpack(words, self.bits, columns)
        codes = packing.unpack(words, self.bits, columns + -columns % 4)
        codes = self._with_signs_moved(codes.movedim(1, -1), -1)
        unpacked: Tensor = codes[..., :columns].movedim(-1, 1)
        return unpacked

    def _with_signs_moved(self, codes: Tensor, by: int) -> Tensor:
        fours = F.pad(codes, (0, -codes.shape[-1] % 4)).unflatten(-1, (-1, 4))
        sign = 1 << (self.bits - 1)
        moved = (fours & sign).roll(by, -1)
        arranged: Tensor = (fours & (sign - 1) | moved).flatten(-2)
        return arranged


# float16 has a bias of 15, fp6 one of 3, e4m3 one of 7.
INT8 = RowScaled(packed.INT8, 8, 127.0, encode_int8, decode_int8)
_FP6 = (encode_fp6, decode_fp6, cpu.fp6_values, 2.0**12)
FP6 = RowScaled(packed.FP6, 6, 28.0, *_FP6, signs_apart=True)
_FLOAT8 = (encode_float8, decode_float8, cpu.float8_values, 2.0**8)
FLOAT8 = RowScaled(packed.FLOAT8, 8, 448.0, *_FLOAT8)
FORMATS = {"int8": INT8, "fp6": FP6, "float8": FLOAT8}
_BY_KIND = {format.kind: format for format in FORMATS.values()}


def many_tokens(x: Tensor, weight: Packed) -> Tensor:
    """See `products`."""
    format = _BY_KIND[weight.decode]
    if format.values is None:
        sums = cpu.int8_sums(x, weight.codes)
    else:
        sums = cpu.float_sums(x, weight.codes, weight.bits, format.values)
    return sums.mul_((weight.scale * format.unit).flatten())


def blocks(weight: Packed) -> Tensor:
    """See `products`."""
    format = _BY_KIND[weight.decode]
    codes = format.unpack(weight.codes, weight.columns)
    return format.decode(codes) * weight.scale.unsqueeze(1)
