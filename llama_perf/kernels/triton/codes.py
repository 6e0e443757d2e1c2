"""Triton building blocks: words of packed codes to float32, two codes at a time.

A unit is eight columns. Its codes come out in pairs that share a 32-bit word, one in
each half: `(word >> shift) & 0x000f000f`. With 0x6400 in both halves a half is the
float16 1024 + code, exactly; of fp6 the code's bits, moved to the places of a
float16's sign, exponent and first mantissa bits, are the value times 2**-12, subnormal
ones included; those of e4m3 are 2**-8 of the value, which the kernels make up for in
their sums. So a code costs no integer-to-float conversion.

A unit of a 2:4 sparse weight is eight stored values, two for each of four quads of
columns. Their formula is that of `kernels/sparse.py`.

Shapes: words and codes (..., units, rows) in two or three dimensions, as handed in.
"""

import triton
import triton.language as tl

from llama_perf.kernels import weight
from llama_perf.kernels.triton.launch import load_once

FLOATS, SPARSE = tl.constexpr(weight.FLOATS), tl.constexpr(weight.SPARSE)
INT8 = tl.constexpr(weight.INT8)
FP6 = tl.constexpr(weight.FP6)
FLOAT8 = tl.constexpr(weight.FLOAT8)
PACKED, OFFSET = tl.constexpr(weight.PACKED), tl.constexpr(weight.OFFSET)


@triton.jit
def load_unit(codes, row, unit, mask, WEIGHT):
    """The words of unit `unit` of `row`, (a, b), as `code_pair` takes them.

    8 bits: the words of its first and last four columns. Else a holds the 4-bit plane,
    b the 2-bit plane's 16 bits, the second eight of them moved to bit 16, and the 1-bit
    plane's 8 bits at bits 8 to 11 and 24 to 27.
    """
    base = (row // 16) * (WEIGHT.WORDS * 16) + row % 16
    if WEIGHT.BITS == 8:
        first = base + unit * 32
        a, b = load_once(codes + first, mask), load_once(codes + first + 16, mask)
    else:
        START2: tl.constexpr = WEIGHT.UNITS if WEIGHT.BITS & 4 else 0
        START1: tl.constexpr = START2 + (
            (WEIGHT.UNITS + 1) // 2 if WEIGHT.BITS & 2 else 0
        )
        a = tl.zeros_like(base + unit).to(tl.int32)
        b = a
        if WEIGHT.BITS & 4:
            a = load_once(codes + base + unit * 16, mask)
        if WEIGHT.BITS & 2:
            word = tl.load(codes + base + (START2 + unit // 2) * 16, mask=mask, other=0)
            half = word >> (16 * (unit % 2))
            b = (half & 0xFF) | ((half & 0xFF00) << 8)
        if WEIGHT.BITS & 1:
            word = tl.load(codes + base + (START1 + unit // 4) * 16, mask=mask, other=0)
            byte = word >> (8 * (unit % 4))
            b = b | ((byte & 0xF) << 8) | ((byte & 0xF0) << 20)
    return a, b


@triton.jit
def code_pair(a, b, PAIR, BITS, DECODE):
    """Two codes in one int32, in its halves: those of the columns `slots`."""
    if BITS == 8:
        word = a if PAIR < 2 else b
        pair = (word >> (8 * (PAIR % 2))) & 0x00FF00FF
    else:
        pair = tl.zeros_like(a)
        if BITS & 4:
            pair = (a >> (4 * PAIR)) & 0x000F000F
        if DECODE == FP6:
            # The sign lies with the next of four codes.
            pair = pair | (((b >> (2 * PAIR)) & 0x00010001) << 4)
            pair = pair | (((b >> ((2 * PAIR + 3) % 8)) & 0x00010001) << 5)
        elif BITS & 2:
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
def unit_values(a, b, PAIR, WEIGHT):
    """The values of two columns of a unit, `slots`; of FLOAT8 2**-8 of them."""
    pair = code_pair(a, b, PAIR, WEIGHT.BITS, WEIGHT.DECODE)
    return values(pair, WEIGHT.DECODE)


@triton.jit
def slots(PAIR, BITS):
    """The columns of a pair's codes, from its unit's first."""
    if BITS == 8:
        return (PAIR // 2) * 4 + PAIR % 2, (PAIR // 2) * 4 + PAIR % 2 + 2
    return PAIR, PAIR + 4


@triton.jit
def packed_code(codes, row, first, index, mask, LAYOUT):
    """Code `index` of `row`, int32: the zero point of a group.

    In every plane it lies in the same word as code `first`, whose shape may be smaller.
    """
    place = codes + (row // 16) * (LAYOUT.WORDS * 16) + row % 16
    code, low = tl.zeros_like(row + index).to(tl.int32), 0
    for SHIFT in tl.static_range(4):
        if LAYOUT.BITS & (8 >> SHIFT):
            piece = plane_code(place, first, index, mask, 8 >> SHIFT)
            code = code | (piece << low)
            low += 8 >> SHIFT
            place += (LAYOUT.UNITS * (8 >> SHIFT) + 3) // 4 * 16
    return code


@triton.jit
def plane_code(place, first, index, mask, PLANE):
    """The piece of code `index` in the plane of so many bits with words at `place`."""
    EACH: tl.constexpr = 32 // PLANE
    word = tl.load(place + first // EACH * 16, mask=mask, other=0)
    return (word >> (PLANE * (index % EACH))) & ((1 << PLANE) - 1)


@triton.jit
def load_scale(scale, row, group, mask, WEIGHT):
    """A number of a group of `row`, float32."""
    place = (row // 16) * (WEIGHT.GROUPS * 16) + group * 16 + row % 16
    return tl.load(scale + place, mask=mask, other=0).to(tl.float32)


@triton.jit
def scale_and_zero(scale, zero, row, group, mask, WEIGHT):
    """Those of `group`, float32; the zero in units of codes unless it is an OFFSET."""
    s = load_scale(scale, row, group, mask, WEIGHT)
    if WEIGHT.ZERO == PACKED:
        ZEROS: tl.constexpr = WEIGHT.ZEROS
        z = packed_code(zero, row, group, group, mask, ZEROS).to(tl.float32)
    else:
        z = load_scale(zero, row, group, mask, WEIGHT)
    return s, z


@triton.jit
def scaled(code, s, z, WEIGHT):
    """A code as a weight, by its group's scale and zero."""
    if WEIGHT.ZERO == OFFSET:
        return (code - 8.0) * s + z
    return (code - z) * s


@triton.jit
def scaled_pair(low, high, scale, zero, row, k0, k1, mask, WEIGHT):
    """Codes of columns `k0` and `k1` as weights: a unit lies in several groups."""
    in0, in1 = mask & (k0 < WEIGHT.K), mask & (k1 < WEIGHT.K)
    s0, z0 = scale_and_zero(scale, zero, row, k0 // WEIGHT.GROUP, in0, WEIGHT)
    s1, z1 = scale_and_zero(scale, zero, row, k1 // WEIGHT.GROUP, in1, WEIGHT)
    return scaled(low, s0, z0, WEIGHT), scaled(high, s1, z1, WEIGHT)


@triton.jit
def stored_value(a, SLOT):
    """Stored value SLOT of a unit, float32; SLOT and SLOT + 4 share their unpacking."""
    # The upper bit flipped, a two's complement code is the value plus 8.
    word = ((a >> (4 * (SLOT % 4))) & 0x000F000F) ^ 0x64086408
    return half_to_float(word, SLOT >= 4) - 1032.0


@triton.jit
def picked(b, x0, x1, x2, x3, QUAD):
    """The two of a quad's four x that its stored values multiply."""
    BIT: tl.constexpr = 1 << (4 * (QUAD % 2) + 16 * (QUAD // 2))
    first = tl.where((b & BIT) != 0, x3, x2)
    first = tl.where((b & (2 * BIT)) != 0, first, x1)
    second = tl.where((b & (4 * BIT)) != 0, x1, x0)
    second = tl.where((b & (8 * BIT)) != 0, x2, second)
    return first, second


@triton.jit
def spread(b, first, second, QUAD):
    """The four weights of a quad, two of them 0."""
    SHIFT: tl.constexpr = 4 * (QUAD % 2) + 16 * (QUAD // 2)
    high = (b >> SHIFT) & 3
    low = (b >> (SHIFT + 2)) & 3
    w0 = tl.where(low == 0, second, 0.0)
    w1 = tl.where(low == 1, second, tl.where(high == 1, first, 0.0))
    w2 = tl.where(low == 2, second, tl.where(high == 2, first, 0.0))
    w3 = tl.where(high == 3, first, 0.0)
    return w0, w1, w2, w3
