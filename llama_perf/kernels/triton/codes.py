"""Triton building blocks: words of packed codes to float32, two codes at a time.

A unit is eight columns. Its codes come out in pairs that share a 32-bit word, one in
each half: `(word >> shift) & 0x000f000f`. With 0x6400 in both halves a half is the
float16 1024 + code, exactly; of fp6 the code's bits, moved to the places of a
float16's sign, exponent and first mantissa bits, are the value times 2**-12, subnormal
ones included; those of e4m3 are 2**-8 of the value, which the kernels make up for in
their sums. So a code costs no integer-to-float conversion.

Shapes: words and codes (..., units, rows) in two or three dimensions, as handed in.
"""

import triton
import triton.language as tl

from llama_perf.kernels import weight
from llama_perf.kernels.triton.dependent_launch import load_once

UNSIGNED = tl.constexpr(weight.UNSIGNED)
INT8 = tl.constexpr(weight.INT8)
FP6 = tl.constexpr(weight.FP6)
FLOAT8 = tl.constexpr(weight.FLOAT8)


@triton.jit
def load_unit(codes, base, unit, mask, K, BITS):
    """The words of a unit, (a, b), as `code_pair` takes them.

    `base` is the place of a row's first word, `unit` the unit's index. 8 bits: the
    words of its first and last four columns. Else a holds the 4-bit plane, b the
    2-bit plane's 16 bits, the second eight of them moved to bit 16, and the 1-bit
    plane's 8 bits at bits 8 to 11 and 24 to 27.
    """
    UNITS: tl.constexpr = (K + 7) // 8
    if BITS == 8:
        first = base + unit * 32
        a, b = load_once(codes + first, mask), load_once(codes + first + 16, mask)
    else:
        START2: tl.constexpr = UNITS if BITS & 4 else 0
        START1: tl.constexpr = START2 + ((UNITS + 1) // 2 if BITS & 2 else 0)
        a = tl.zeros_like(base + unit).to(tl.int32)
        b = a
        if BITS & 4:
            a = load_once(codes + base + unit * 16, mask)
        if BITS & 2:
            word = tl.load(codes + base + (START2 + unit // 2) * 16, mask=mask, other=0)
            half = word >> (16 * (unit % 2))
            b = (half & 0xFF) | ((half & 0xFF00) << 8)
        if BITS & 1:
            word = tl.load(codes + base + (START1 + unit // 4) * 16, mask=mask, other=0)
            byte = word >> (8 * (unit % 4))
            b = b | ((byte & 0xF) << 8) | ((byte & 0xF0) << 20)
    return a, b


@triton.jit
def code_pair(a, b, PAIR, BITS):
    """Two codes in one int32, in its halves: columns `first_slot` and `second_slot`."""
    if BITS == 8:
        word = a if PAIR < 2 else b
        pair = (word >> (8 * (PAIR % 2))) & 0x00FF00FF
    else:
        pair = tl.zeros_like(a)
        if BITS & 4:
            pair = (a >> (4 * PAIR)) & 0x000F000F
        if BITS & 2:
            pair = pair | (((b >> (2 * PAIR)) & 0x00030003) << (BITS & 4))
        if BITS & 1:
            pair = pair | (((b >> (8 + PAIR)) & 0x00010001) << (BITS & 6))
    return pair


@triton.jit
def half_to_float(word, HIGH):
    """One half of an int32, read as float16, in float32."""
    bits = (word >> 16) if HIGH else (word & 0xFFFF)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def values(pair, DECODE):
    """The two values of a pair of codes, float32; of FLOAT8 2**-8 of them."""
    if DECODE == FP6:
        # 0b00SEEEMM to float16: S to bit 15, EEEMM to bits 12 to 8.
        word = ((pair & 0x001F001F) << 8) | ((pair & 0x00200020) << 10)
        low = half_to_float(word, False) * 4096.0
        high = half_to_float(word, True) * 4096.0
    elif DECODE == FLOAT8:
        # 0bSEEEEMMM to float16: S to bit 15, EEEEMMM to bits 13 to 7.
        word = (pair + (pair & 0x00800080)) << 7
        low, high = half_to_float(word, False), half_to_float(word, True)
    elif DECODE == INT8:
        # The upper bit flipped, a two's complement code is the value plus 128.
        word = (pair ^ 0x00800080) | 0x64006400
        low = half_to_float(word, False) - 1152.0
        high = half_to_float(word, True) - 1152.0
    else:
        word = pair | 0x64006400
        low = half_to_float(word, False) - 1024.0
        high = half_to_float(word, True) - 1024.0
    return low, high


@triton.jit
def first_slot(PAIR, BITS):
    """The column of a pair's lower code, from its unit's first."""
    return (PAIR // 2) * 4 + PAIR % 2 if BITS == 8 else PAIR


@triton.jit
def second_slot(PAIR, BITS):
    """The column of a pair's upper code, from its unit's first."""
    return (PAIR // 2) * 4 + PAIR % 2 + 2 if BITS == 8 else PAIR + 4


@triton.jit
def packed_code(codes, base, index, mask, COUNT, BITS):
    """Code `index` of rows of COUNT packed codes, int32: the zero point of a group."""
    UNITS: tl.constexpr = (COUNT + 7) // 8
    START2: tl.constexpr = UNITS if BITS & 4 else 0
    START1: tl.constexpr = START2 + ((UNITS + 1) // 2 if BITS & 2 else 0)
    code = tl.zeros_like(base + index).to(tl.int32)
    if BITS == 8:
        word = tl.load(codes + base + (index // 4) * 16, mask=mask, other=0)
        code = (word >> (8 * (index % 4))) & 255
    if BITS & 4:
        word = tl.load(codes + base + (index // 8) * 16, mask=mask, other=0)
        code = (word >> (4 * (index % 8))) & 15
    if BITS & 2:
        word = tl.load(codes + base + (START2 + index // 16) * 16, mask=mask, other=0)
        code = code | (((word >> (2 * (index % 16))) & 3) << (BITS & 4))
    if BITS & 1:
        word = tl.load(codes + base + (START1 + index // 32) * 16, mask=mask, other=0)
        code = code | (((word >> (index % 32)) & 1) << (BITS & 6))
    return code
