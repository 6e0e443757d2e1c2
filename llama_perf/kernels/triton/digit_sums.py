"""Triton building blocks: the sums of a 2:4 weight and few tokens, by digits.

    y[m, n] = sum over k of x[m, k] * g[k] * w[n, k]

As in `tile_sums`, but on int8 tensor cores, to which a weight's four bits are the upper
ones of a byte: that takes half as many instructions. x * g times a power of two, which
brings the token's largest to less than 2**30, is rounded to a whole number, and that is
cut to four int8 digits, X = a + 2**8 b + 2**16 c + 2**24 d. A product has eight columns
for tokens: the digits of two fill them. A group's sums are exact; its scale is applied
to them in float32.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import load_scale
from llama_perf.kernels.triton.launch import INTERPRETED, KNOWN_BOUNDS, wait_for_input
from llama_perf.kernels.triton.peaks import (
    inverse_power_of_two,
    known_peak,
    peak_before_loop,
    power_of_two,
)
from llama_perf.kernels.triton.sparse_codes import quad_columns
from llama_perf.kernels.triton.tile_loads import is_ragged, load_quads, tiles_of
from llama_perf.kernels.triton.tile_tokens import load_tile

BITS_OF_X = tl.constexpr(30)
"""Bits of the whole numbers besides the sign."""
DIGITS = tl.constexpr(4)
"""Digits of a number, which are columns of a product."""
# What makes every byte but the upper one a digit with its upper bit flipped.
BIAS = tl.constexpr(0x808080)
# Four whole numbers to the digits of each worth.
_CUT = """{ .reg .b32 s, t;
    prmt.b32 s, $4, $5, 0x5140; prmt.b32 t, $6, $7, 0x5140;
    prmt.b32 $0, s, t, 0x5410; xor.b32 $0, $0, 0x80808080;
    prmt.b32 $1, s, t, 0x7632; xor.b32 $1, $1, 0x80808080;
    prmt.b32 s, $4, $5, 0x7362; prmt.b32 t, $6, $7, 0x7362;
    prmt.b32 $2, s, t, 0x5410; xor.b32 $2, $2, 0x80808080;
    prmt.b32 $3, s, t, 0x7632; }"""


@triton.constexpr_function
def cutting() -> str:
    """PTX from four biased whole numbers to their digits, a register for each worth."""
    return _CUT


@triton.jit
def cut(a, b, c, d):
    """The digits of four float32 below 2**30 each, rounded to whole numbers.

    Four int32, of which each has the digit of one worth of all four, as bytes.
    """
    # A float32 of that size has 24 bits, so what the bias rounds away is little.
    a, b = (a + BIAS).to(tl.int32), (b + BIAS).to(tl.int32)
    c, d = (c + BIAS).to(tl.int32), (d + BIAS).to(tl.int32)
    if INTERPRETED:
        first = _bytes(a, b, c, d, 0) ^ -0x7F7F7F80
        second = _bytes(a, b, c, d, 8) ^ -0x7F7F7F80
        third = _bytes(a, b, c, d, 16) ^ -0x7F7F7F80
        return first, second, third, _bytes(a, b, c, d, 24)
    ASM: tl.constexpr = cutting()
    return tl.inline_asm_elementwise(
        ASM, "=&r,=&r,=&r,=&r,r,r,r,r", [a, b, c, d],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _bytes(a, b, c, d, SHIFT):
    low = ((a >> SHIFT) & 255) | (((b >> SHIFT) & 255) << 8)
    return low | (((c >> SHIFT) & 255) << 16) | (((d >> SHIFT) & 255) << 24)


@triton.jit
def digit_columns(a, b, c, d):
    """Four (BATCH, 16, TOKENS) of whole numbers to int8, (BATCH, 64, 4 TOKENS)."""
    BATCH: tl.constexpr = a.shape[0]
    COLUMNS: tl.constexpr = DIGITS * a.shape[2]
    first, second, third, fourth = cut(a, b, c, d)
    words = tl.join(tl.join(first, third), tl.join(second, fourth))
    words = words.reshape(BATCH, 16, 1, COLUMNS)
    # A word is four rows: each of them has it, to be taken in one register.
    words = tl.broadcast_to(words, (BATCH, 16, 4, COLUMNS))
    words = words.reshape(BATCH, 64, COLUMNS)
    if INTERPRETED:
        return (words >> (tl.arange(0, 64) % 4 * 8)[None, :, None]).to(tl.int8)
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r,r,r,r", [words], dtype=tl.int8, is_pure=True, pack=4
    )


@triton.jit
def side_by_side(first, second):
    """(BATCH, rows, 32) twice to (BATCH, rows, 64)."""
    BATCH: tl.constexpr = first.shape[0]
    ROWS: tl.constexpr = first.shape[1]
    return tl.permute(tl.join(first, second), (0, 1, 3, 2)).reshape(BATCH, ROWS, 64)


@triton.jit
def digit_sums(
    x, norm, peaks_in, ready, codes, scale, block_n, split, M, N,
    WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) and those of x**2 (TOKENS, 1), float32.

    `peaks_in`, and with DEPENDENT the input, are as for `tile_sums`.
    """
    K: tl.constexpr = WEIGHT.K
    # A tile is a group: eight words of four quads.
    COLUMNS: tl.constexpr = 8 * 16
    BATCH: tl.constexpr = BLOCK_U // 8
    TILES: tl.constexpr = WEIGHT.GROUPS
    SHORT: tl.constexpr = BATCH * STEPS > TILES
    PARTIAL: tl.constexpr = K % COLUMNS != 0 or SHORT
    RAGGED: tl.constexpr = is_ragged(K, BATCH * COLUMNS, STEPS)
    batch = tl.arange(0, BATCH)[:, None, None]
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    # Of each word columns 0 and 1 of its quads, then 2 and 3.
    part = tl.arange(0, 16)[None, :, None]
    token = tl.minimum(tl.arange(0, TOKENS), M - 1)[None, None, :]
    acc = tl.zeros((BATCH, BLOCK_N, DIGITS * TOKENS), tl.float32)
    squares = tl.zeros((BATCH, 16, TOKENS), tl.float32)
    own, steps, first = tiles_of(split, STEPS, TILES, BATCH, RAGGED)
    SPAN: tl.constexpr = STEPS * BATCH * COLUMNS
    peak = peak_before_loop(
        x, norm, peaks_in, ready, own * COLUMNS, M, K, SPAN, TOKENS, DEPENDENT
    )
    for step in tl.range(STEPS if KNOWN_BOUNDS else steps, num_stages=STAGES):
        if DEPENDENT:
            wait_for_input(ready, step)
        tile = first + step * BATCH + batch
        known = row < N
        quads, places = load_quads(codes, row, tile, known, PARTIAL, WEIGHT)
        w0, w1, w2, w3 = quad_columns(quads, places)
        if peaks_in is not None:
            peak = known_peak(peaks_in, M, TOKENS)
        k = tile * COLUMNS + part % 8 * 16 + part // 8 * 2
        values, squares = load_tile(
            x, norm, power_of_two(peak, BITS_OF_X)[None, None, :], squares,
            tile, own, token, k, 8, 2, 4, K, PARTIAL, RAGGED,
        )  # fmt: skip
        sums = tl.zeros((BATCH, BLOCK_N, DIGITS * TOKENS), tl.int32)
        tokens = digit_columns(values[1], values[3], values[5], values[7])
        sums = tl.dot(side_by_side(w1, w3), tokens, sums, out_dtype=tl.int32)
        tokens = digit_columns(values[0], values[2], values[4], values[6])
        sums = tl.dot(side_by_side(w0, w2), tokens, sums, out_dtype=tl.int32)
        if SHORT:
            known = known & (tile < TILES)
        acc += sums.to(tl.float32) * load_scale(scale, row, tile, known, WEIGHT)
    worth = (1 << (8 * tl.arange(0, DIGITS))).to(tl.float32)[None, :, None]
    total = tl.trans(tl.sum(acc, axis=0)).reshape(TOKENS, DIGITS, BLOCK_N)
    total = tl.sum(total * worth, axis=1)
    # The weights were sixteen times too large.
    total = total * 0.0625 * inverse_power_of_two(peak, BITS_OF_X)[:, None]
    return total, tl.sum(tl.sum(squares, axis=0), axis=0)[:, None]
