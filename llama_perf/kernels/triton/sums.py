"""Triton building blocks: the sums of a product of few tokens, of any format.

    y[m, n] = sum over k of x[m, k] * g[k] * w[n, k]

for the 16 rows and the stretch of columns of one program. Codes are unpacked in
registers and multiplied in float32; the zero point is taken out once a unit with the
sum of x. `norm` is g, the weight of an RMSNorm, or None. With it the squares of x are
summed on the way: the norm's reciprocal root is one factor for each token, so it can
wait for the end. With DYNAMIC x * g is rounded to int8 first, four columns a word, and
the sums are whole numbers, four columns an instruction.

Of a 2:4 sparse weight x is picked by position: a pruned weight costs no product. A
program of a fused kernel sums a stretch of columns, its split. Of a group of rows the
last program to arrive adds the splits' parts.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llama_perf.kernels.triton.codes import (
    FLOAT8,
    FLOATS,
    OFFSET,
    SPARSE,
    code_pair,
    load_scale,
    load_unit,
    picked,
    scale_and_zero,
    scaled_pair,
    slots,
    stored_value,
    values,
)
from llama_perf.kernels.triton.launch import INTERPRETED, load_once, prefetch


@triton.jit
def dot4(a, b, acc):
    """`acc` plus the dot product of the four int8 of each word of `a` and `b`."""
    # Written out to one shape: inline assembly takes no broadcast.
    none = tl.zeros_like(acc)
    a, b = a + none, b + none
    if INTERPRETED:
        # The interpreter has no dp4a.
        for SLOT in tl.static_range(4):
            left = (a << (24 - 8 * SLOT)) >> 24
            right = (b << (24 - 8 * SLOT)) >> 24
            acc += left * right
    else:
        acc = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [a, b, acc],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return acc


@triton.jit
def rounded(x):
    """The nearest whole number, the even one of two; |x| below 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def load_activation(x, norm, squares, k, mask):
    """Columns `k` of x * g, float32, and `squares` with those of x added."""
    value = tl.load(x + k, mask=mask, other=0.0).to(tl.float32)
    if norm is not None:
        squares += value * value
        value *= tl.load(norm + k, mask=mask, other=0.0).to(tl.float32)
    return value, squares


@triton.jit
def int8_word(x, norm, inverse, squares, k, mask, K):
    """Columns `k` to k + 3 of x * g * `inverse`, rounded to int8, in an int32."""
    word = tl.zeros_like(k + mask.to(tl.int32))
    for SLOT in tl.static_range(4):
        inside = mask & (k + SLOT < K)
        value, squares = load_activation(x, norm, squares, k + SLOT, inside)
        code = rounded(value * inverse).to(tl.int32) & 0xFF
        word = word | (code << (8 * SLOT))
    return word, squares


@triton.jit
def code_sums(
    x, norm, inverse, codes, scale, zero, block_n, split, M, N,
    WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) and those of x**2 (TOKENS, 1), float32.

    `inverse` (TOKENS, 1, 1) turns x * g into int8; it is read only with DYNAMIC.
    """
    K: tl.constexpr = WEIGHT.K
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    at, here = x + token * K, token < M
    if WEIGHT.DYNAMIC:
        acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.int32)
    else:
        acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        mask = (unit < WEIGHT.UNITS) & (row < N)
        a, b = load_unit(codes, row, unit, mask, WEIGHT)
        if WEIGHT.DYNAMIC:
            inside, k = here & (unit < WEIGHT.UNITS), unit * 8
            first, squares = int8_word(at, norm, inverse, squares, k, inside, K)
            acc = dot4(a, first, acc)
            last, squares = int8_word(at, norm, inverse, squares, k + 4, inside, K)
            acc = dot4(b, last, acc)
        else:
            sums = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
            x_sum = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
            for PAIR in tl.static_range(4):
                low, high = values(code_pair(a, b, PAIR, WEIGHT.BITS), WEIGHT.DECODE)
                slot0, slot1 = slots(PAIR, WEIGHT.BITS)
                k0, k1 = unit * 8 + slot0, unit * 8 + slot1
                x0, squares = load_activation(at, norm, squares, k0, here & (k0 < K))
                x1, squares = load_activation(at, norm, squares, k1, here & (k1 < K))
                if WEIGHT.GROUP % 8 != 0:
                    low, high = scaled_pair(
                        low, high, scale, zero, row, k0, k1, mask, WEIGHT
                    )
                sums += x0 * low
                sums += x1 * high
                x_sum += x0 + x1
            if WEIGHT.GROUP != 0 and WEIGHT.GROUP % 8 == 0:
                g = (unit * 8) // WEIGHT.GROUP
                s, z = scale_and_zero(scale, zero, row, g, mask, WEIGHT)
                if WEIGHT.ZERO == OFFSET:
                    acc += (sums - 8.0 * x_sum) * s + x_sum * z
                else:
                    acc += (sums - x_sum * z) * s
            else:
                acc += sums
    total = tl.sum(acc, axis=1).to(tl.float32)
    if WEIGHT.GROUP == 0:
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        total *= tl.load(scale + n, mask=n < N, other=0.0)
    if WEIGHT.DECODE == FLOAT8:
        total *= 256.0
    return total, tl.sum(squares, axis=1)


@triton.jit
def float_sums(
    x, norm, weight, block_n, split, M, N,
    K, TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """As `code_sums` of a weight of floats (N, K); a unit is eight columns here too."""
    COLUMNS: tl.constexpr = BLOCK_U * 8
    n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    token = tl.arange(0, TOKENS)[:, None, None]
    acc = tl.zeros((TOKENS, BLOCK_N, COLUMNS), tl.float32)
    squares = tl.zeros((TOKENS, 1, COLUMNS), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * COLUMNS
        k = (start + tl.arange(0, COLUMNS))[None, None, :]
        w = load_once(weight + n * K + k, (n < N) & (k < K))
        inside = (token < M) & (k < K)
        value, squares = load_activation(x + token * K, norm, squares, k, inside)
        acc += value * w.to(tl.float32)
    return tl.sum(acc, axis=2), tl.sum(squares, axis=2)


@triton.jit
def sparse_sums(
    x, norm, codes, scale, block_n, split, M, N,
    WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """As `code_sums` of a 2:4 sparse weight."""
    K: tl.constexpr = WEIGHT.K
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        mask = (unit < WEIGHT.UNITS) & (row < N)
        a, b = load_unit(codes, row, unit, mask, WEIGHT)
        sums = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
        for QUAD in tl.static_range(4):
            k = unit * 16 + 4 * QUAD
            at, inside = x + token * K, (token < M) & (k < K)
            x0, squares = load_activation(at, norm, squares, k, inside)
            x1, squares = load_activation(at, norm, squares, k + 1, inside)
            x2, squares = load_activation(at, norm, squares, k + 2, inside)
            x3, squares = load_activation(at, norm, squares, k + 3, inside)
            lower, upper = picked(b, x0, x1, x2, x3, QUAD)
            sums += lower * stored_value(a, 2 * QUAD)
            sums += upper * stored_value(a, 2 * QUAD + 1)
        acc += sums * load_scale(scale, row, unit // 8, mask, WEIGHT)
    return tl.sum(acc, axis=1), tl.sum(squares, axis=1)


@triton.jit
def prefetch_and_wait(codes, block_n, split, N, WEIGHT, BLOCK_U, BLOCK_N, STEPS):
    """Ask for the first weights, let the next kernel start, and wait for the input."""
    first = split * STEPS * BLOCK_U
    if WEIGHT.FORMAT == FLOATS:
        # A line of 128 bytes for each row and so many columns.
        LINE: tl.constexpr = 1024 // WEIGHT.BITS
        n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
        k = tl.arange(0, (BLOCK_U * 8 + LINE - 1) // LINE)[None, :] * LINE
        k = tl.minimum(k + first * 8, WEIGHT.K - 1)
        prefetch(codes + (tl.minimum(n, N - 1) * WEIGHT.K + k))
    else:
        # A word of 16 rows is half a line; those of the widest plane come first.
        EACH: tl.constexpr = 2 if WEIGHT.BITS == 8 else 1
        word = first * EACH + tl.arange(0, BLOCK_U) * EACH
        word = tl.minimum(word, WEIGHT.WORDS - 1)
        prefetch(codes + (block_n * (WEIGHT.WORDS * 16) + word * 16))
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def token_peak(x, norm, peaks_in, M, K, TOKENS):
    """The largest |x * g| of each token, (TOKENS,), so large that it / 127 is normal.

    The kernel in front has written it to `peaks_in`, unless that is None.
    """
    SMALLEST: tl.constexpr = 1.5e-36
    if peaks_in is not None:
        m = tl.arange(0, TOKENS)
        known = tl.load(peaks_in + m, mask=m < M, other=0).to(tl.float32, bitcast=True)
        return tl.maximum(known, SMALLEST)
    # As much at once as the registers hold, since each round waits for memory.
    BLOCK: tl.constexpr = 4096 // TOKENS
    token = tl.arange(0, TOKENS)[:, None]
    peak = tl.full((TOKENS, BLOCK), SMALLEST, tl.float32)
    for start in range(0, K, BLOCK):
        k = (start + tl.arange(0, BLOCK))[None, :]
        inside = (token < M) & (k < K)
        value = tl.load(x + token * K + k, mask=inside, other=0.0).to(tl.float32)
        if norm is not None:
            value *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(value))
    return tl.max(peak, axis=1)


@triton.jit
def block_sums(
    x, norm, peaks_in, codes, scale, zero, block_n, split, M, N,
    WEIGHT, DEPENDENT,
    TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) of any format and those of x**2, (TOKENS, 1).

    With DEPENDENT the program asks for its weights and waits for its input first.
    """
    K: tl.constexpr = WEIGHT.K
    if DEPENDENT:
        prefetch_and_wait(codes, block_n, split, N, WEIGHT, BLOCK_U, BLOCK_N, STEPS)
    if WEIGHT.FORMAT == FLOATS:
        total, squares = float_sums(
            x, norm, codes, block_n, split, M, N,
            K, TOKENS, BLOCK_U, BLOCK_N, STEPS,
        )  # fmt: skip
    elif WEIGHT.FORMAT == SPARSE:
        total, squares = sparse_sums(
            x, norm, codes, scale, block_n, split, M, N,
            WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS,
        )  # fmt: skip
    else:
        inverse = 0.0
        if WEIGHT.DYNAMIC:
            largest = token_peak(x, norm, peaks_in, M, K, TOKENS)
            inverse = (127.0 / largest)[:, None, None]
        total, squares = code_sums(
            x, norm, inverse, codes, scale, zero, block_n, split, M, N,
            WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS,
        )  # fmt: skip
        if WEIGHT.DYNAMIC:
            total *= (largest * (1.0 / 127.0))[:, None]
    return total, squares


@triton.jit
def normalized(total, squares, EPS, K, norm):
    """`total` (TOKENS, n) times the norm's factor, from the sums of squares."""
    if norm is not None:
        total *= tl.rsqrt(squares / K + EPS)
    return total
