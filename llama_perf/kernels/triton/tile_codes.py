"""Triton building blocks: packed codes to the operand of a product on tensor cores.

A tile is (BATCH, rows, 16): sixteen halves of eight words of one plane, the widest that
a code has. A half of a word holds SLOTS consecutive columns. Slot by slot the tile
becomes float16, which tensor cores multiply with the same columns of x. Both halves of
a word are in one register, decoded by the same instructions, and never leave it: that
is where the product takes them.

A code is or'ed into the mantissa of the float16 1024, whose last place is worth 1, and
what is too much is subtracted: 1024, and of unsigned codes `middle(bits)` as well. An
fp6 or float8 code's bits are moved to the places of a float16's; the values are 2**-12
and 2**-8 of what they should be. Every value is exact.
"""

import triton
import triton.language as tl

from llama_perf.kernels import weight
from llama_perf.kernels.triton.launch import INTERPRETED

# Plain numbers, which PTX text is made with.
_INT8, _FP6, _FLOAT8 = weight.INT8, weight.FP6, weight.FLOAT8


@triton.constexpr_function
def widest_plane(bits: int) -> int:
    """The bits that the widest plane has of a code."""
    return next(plane for plane in (8, 4, 2, 1) if bits & plane)


@triton.constexpr_function
def middle(bits: int) -> int:
    """What is subtracted from unsigned codes: sums of smaller terms are more exact."""
    return 1 << (bits - 1)


@triton.constexpr_function
def _twice(half: int) -> str:
    """A constant with `half` in both halves of a register."""
    return f"0x{half * 0x10001:08x}"


@triton.constexpr_function
def _field(source: str, start: int, bits: int, to: int, known: str) -> list[str]:
    """Or `bits` of both halves of `source` from bit `start` into `known`, at bit `to`.

    The result is in register t. `known` is a register or a constant.
    """
    mask = _twice(((1 << bits) - 1) << to)
    text = _moved(source, start, to, "s")
    return [*text, f"lop3.b32 t, s, {mask}, {known}, 0xea;"]


@triton.constexpr_function
def _moved(source: str, start: int, to: int, result: str) -> list[str]:
    """All bits of `source` by as many places as lie between two of them."""
    how = "shr" if start > to else "shl"
    if start == to:
        return [f"mov.b32 {result}, {source};"]
    return [f"{how}.b32 {result}, {source}, {abs(start - to)};"]


@triton.constexpr_function
def decoding(bits: int, decode: int, slot: int) -> str:
    """PTX from the planes' registers, widest first, of two halves to two float16."""
    wide = widest_plane(bits)
    one, text = 0x6400, []
    if decode == _INT8:
        # The upper bit flipped, a two's complement code is the value plus 128.
        moved = "$1" if slot == 0 else "s"
        if slot:
            text.append("shr.b32 s, $1, 8;")
        text.append(f"lop3.b32 t, {moved}, {_twice(0xFF)}, {_twice(0x6480)}, 0x6a;")
        text.append(f"mov.b32 c, {_twice(0xE480)}; add.f16x2 $0, t, c;")
    elif decode == _FP6:
        # 0bSEEEMM: S to bit 15, EEE and MM to bits 12 to 8. In memory S is three places
        # beyond the highest E, around the end of a byte, which `widened` has doubled.
        text += _moved("$1", 4 * slot, 8, "s") + _moved("$2", 2 * slot, 12, "c")
        text.append(f"lop3.b32 t, s, c, {_twice(0x0F00)}, 0xe4;")
        text.append(f"and.b32 $0, t, {_twice(0x9F00)};")
    elif decode == _FLOAT8:
        # 0bSEEEEMMM: S to bit 15, the rest to bits 13 to 7.
        text += _field("$1", 8 * slot, 7, 7, "0")
        text += _field("$1", 8 * slot + 7, 1, 15, "t")
        text.append("mov.b32 $0, t;")
    elif bits == wide:
        # Codes of one plane stay where they are, up to bit 9: scaled by 2**start.
        start, source = wide * slot, "$1"
        if start >= 8:
            text.append("shr.b32 s, $1, 8;")
            start, source = start - 8, "s"
        text += _field(source, start, wide, start, _twice(one))
        scale, less = 1024 >> start, middle(bits)
        text.append(f"mov.b32 c, {_half2(-scale - less)};")
        if start:
            text.append(f"mov.b32 d, {_half2(2.0**-start)};")
            text.append("fma.rn.f16x2 $0, t, d, c;")
        else:
            text.append("add.f16x2 $0, t, c;")
    else:
        text += _field("$1", wide * slot, wide, 0, _twice(one))
        low, register = wide, 2
        for plane in (4, 2, 1):
            if bits & plane and plane < wide:
                text += _field(f"${register}", plane * slot, plane, low, "t")
                low, register = low + plane, register + 1
        text.append(f"mov.b32 c, {_half2(-1024 - middle(bits))}; add.f16x2 $0, t, c;")
    return "{ .reg .b32 s, t, c, d; " + " ".join(text) + " }"


@triton.constexpr_function
def _half2(value: float) -> str:
    """A float16, neither 0 nor subnormal, in both halves of a register."""
    sign, size, exponent = 0x8000 * (value < 0), abs(value), 15
    while size >= 2:
        size, exponent = size / 2, exponent + 1
    while size < 1:
        size, exponent = size * 2, exponent - 1
    text: str = _twice(sign | exponent << 10 | int((size - 1) * 1024))
    return text


@triton.constexpr_function
def registers(count: int) -> str:
    """The constraints of inline assembly with one result and so many operands."""
    return ",".join(["=r"] + ["r"] * count)


@triton.constexpr_function
def narrower_planes(bits: int) -> int:
    """How many planes a code has besides the widest one."""
    return bin(bits).count("1") - 1


@triton.jit
def decoded(planes, BITS, DECODE, SLOT):
    """Column SLOT of every half of a word, float16.

    `planes` are int16: halves of the widest plane, and the pieces that the planes of
    two bits and of one, if a code has those too, have of the same columns.
    """
    if INTERPRETED:
        return _interpreted(planes, BITS, DECODE, SLOT)
    ASM: tl.constexpr = decoding(BITS, DECODE, SLOT)
    if narrower_planes(BITS) == 0:
        operands = [planes[0]]
    elif narrower_planes(BITS) == 1:
        operands = [planes[0], planes[1]]
    else:
        operands = [planes[0], planes[1], planes[2]]
    COUNT: tl.constexpr = registers(len(operands))
    return tl.inline_asm_elementwise(
        ASM, COUNT, operands, dtype=tl.float16, is_pure=True, pack=2
    )


@triton.jit
def _interpreted(planes, BITS, DECODE, SLOT):
    WIDE: tl.constexpr = widest_plane(BITS)
    code = (planes[0].to(tl.int32) >> (WIDE * SLOT)) & ((1 << WIDE) - 1)
    if BITS & 2 and WIDE == 4:
        code = code | (((planes[1].to(tl.int32) >> (2 * SLOT)) & 3) << WIDE)
        if DECODE == weight.FP6:
            sign = (planes[1].to(tl.int32) >> ((2 * SLOT + 3) % 8)) & 1
            code = (code & 31) | (sign << 5)
    if BITS & 1 and WIDE > 1:
        ones = planes[narrower_planes(BITS)].to(tl.int32)
        code = code | (((ones >> SLOT) & 1) << (BITS - 1))
    if DECODE == weight.INT8:
        value = ((code << 24) >> 24).to(tl.float16)
    elif DECODE == weight.FP6:
        half = ((code & 31) << 8) | ((code & 32) << 10)
        value = half.to(tl.int16).to(tl.float16, bitcast=True)
    elif DECODE == weight.FLOAT8:
        half = ((code & 127) << 7) | ((code & 128) << 8)
        value = half.to(tl.int16).to(tl.float16, bitcast=True)
    else:
        value = (code - middle(BITS)).to(tl.float16)
    return value


@triton.jit
def widened(pieces, TWICE):
    """uint8 to int16, two registers from one; with TWICE both of its bytes are that."""
    if INTERPRETED:
        return (pieces.to(tl.int32) * (257 if TWICE else 1)).to(tl.int16)
    return tl.inline_asm_elementwise(
        widening(TWICE), "=r,=r,r", [pieces], dtype=tl.int16, is_pure=True, pack=4
    )


@triton.constexpr_function
def widening(twice: bool) -> str:
    """PTX from a register of four bytes to two with a byte in each half, or twice."""
    first, second = (0x1100, 0x3322) if twice else (0x4140, 0x4342)
    return f"prmt.b32 $0, $2, 0, {first:#x}; prmt.b32 $1, $2, 0, {second:#x};"


@triton.jit
def from_whole(code, BITS):
    """`middle` less int32 codes, float16."""
    if INTERPRETED:
        return (middle(BITS) - code).to(tl.float16)
    # 1024 + code in a float16, and that subtracted from 1024 + middle.
    half = (code | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)
    return (1024.0 + middle(BITS)) - half
