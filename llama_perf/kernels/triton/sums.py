"""Triton building blocks: the sums of a product of few tokens with codes or floats.

    y[m, n] = sum over k of x[m, k] * g[k] * w[n, k]

for the 16 rows and the stretch of columns of one program. Codes are unpacked in
registers and multiplied in float32; the zero point is taken out once a unit with the
sum of x. With NORM g is the weight of an RMSNorm, and the squares of x are summed on
the way: the norm's reciprocal root is one factor for each token, so it can wait for the
end. With DYNAMIC x * g is rounded to int8 first, four columns a word, and the sums are
whole numbers, four columns an instruction where DYNAMIC is BY_DP4A.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import (
    FLOAT8,
    code_pair,
    first_slot,
    load_unit,
    packed_code,
    second_slot,
    values,
)
from llama_perf.kernels.triton.dependent_launch import load_once
from llama_perf.kernels.triton.int8_dynamic import dot4

# DYNAMIC, where activations are rounded to int8.
WRITTEN_OUT = tl.constexpr(1)
BY_DP4A = tl.constexpr(2)


@triton.jit
def rounded(x):
    """The nearest whole number, the even one of two; |x| below 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def load_activation(x, norm_weight, squares, k, mask, NORM):
    """Columns `k` of x * g, float32, and `squares` with those of x added."""
    value = tl.load(x + k, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        squares += value * value
        value *= tl.load(norm_weight + k, mask=mask, other=0.0).to(tl.float32)
    return value, squares


@triton.jit
def int8_word(x, norm_weight, inverse, squares, k, mask, K, NORM):
    """Columns `k` to k + 3 of x * g * `inverse`, rounded to int8, in an int32."""
    word = tl.zeros_like(k + mask.to(tl.int32))
    for SLOT in tl.static_range(4):
        inside = mask & (k + SLOT < K)
        value, squares = load_activation(
            x, norm_weight, squares, k + SLOT, inside, NORM
        )
        code = rounded(value * inverse).to(tl.int32) & 0xFF
        word = word | (code << (8 * SLOT))
    return word, squares


@triton.jit
def group_scale(scale, zero, block, lane, group, mask, K, BITS, GROUP, ZERO):
    """Scale and zero of `group`, float32; the zero in units of codes but for ZERO 3."""
    GROUPS: tl.constexpr = K // GROUP
    place = block * (GROUPS * 16) + group * 16 + lane
    s = tl.load(scale + place, mask=mask, other=0.0).to(tl.float32)
    if ZERO == 2:
        UNITS: tl.constexpr = (GROUPS + 7) // 8
        WORDS: tl.constexpr = (
            (2 * UNITS if BITS == 8 else 0)
            + (UNITS if BITS & 4 else 0)
            + ((UNITS + 1) // 2 if BITS & 2 else 0)
            + ((UNITS + 3) // 4 if BITS & 1 else 0)
        )
        base = block * (WORDS * 16) + lane
        z = packed_code(zero, base, group, mask, GROUPS, BITS).to(tl.float32)
    else:
        z = tl.load(zero + place, mask=mask, other=0).to(tl.float32)
    return s, z


@triton.jit
def weight_pair(low, high, s0, z0, s1, z1, ZERO):
    """Two codes with their groups' scales and zeros, as weights."""
    if ZERO == 3:
        first, second = (low - 8.0) * s0 + z0, (high - 8.0) * s1 + z1
    else:
        first, second = (low - z0) * s0, (high - z1) * s1
    return first, second


@triton.jit
def code_sums(
    x, norm_weight, inverse, codes, scale, zero, block_n, split, M, N,
    K, WORDS, BITS, DECODE, GROUP, ZERO, NORM, DYNAMIC,
    TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) and those of x**2 (TOKENS, 1), float32.

    `inverse` (TOKENS, 1, 1) turns x * g into int8; it is read only with DYNAMIC.
    """
    UNITS: tl.constexpr = (K + 7) // 8
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    block, lane = row // 16, row % 16
    base = block * (WORDS * 16) + lane
    if DYNAMIC:
        acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.int32)
    else:
        acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        mask = (unit < UNITS) & (row < N)
        a, b = load_unit(codes, base, unit, mask, K, BITS)
        if DYNAMIC:
            # Written out to one shape: inline assembly takes no broadcast.
            none = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.int32)
            inside = (token < M) & (unit < UNITS)
            place, k = x + token * K, unit * 8
            first, squares = int8_word(
                place, norm_weight, inverse, squares, k, inside, K, NORM
            )
            acc = dot4(a + none, first + none, acc, DYNAMIC == BY_DP4A)
            last, squares = int8_word(
                place, norm_weight, inverse, squares, k + 4, inside, K, NORM
            )
            acc = dot4(b + none, last + none, acc, DYNAMIC == BY_DP4A)
        else:
            sums = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
            x_sum = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
            for PAIR in tl.static_range(4):
                low, high = values(code_pair(a, b, PAIR, BITS), DECODE)
                k0 = unit * 8 + first_slot(PAIR, BITS)
                k1 = unit * 8 + second_slot(PAIR, BITS)
                place = x + token * K
                in0, in1 = (token < M) & (k0 < K), (token < M) & (k1 < K)
                x0, squares = load_activation(
                    place, norm_weight, squares, k0, in0, NORM
                )
                x1, squares = load_activation(
                    place, norm_weight, squares, k1, in1, NORM
                )
                if GROUP % 8 != 0:
                    in0, in1 = mask & (k0 < K), mask & (k1 < K)
                    g0, g1 = k0 // GROUP, k1 // GROUP
                    s0, z0 = group_scale(
                        scale, zero, block, lane, g0, in0, K, BITS, GROUP, ZERO
                    )
                    s1, z1 = group_scale(
                        scale, zero, block, lane, g1, in1, K, BITS, GROUP, ZERO
                    )
                    low, high = weight_pair(low, high, s0, z0, s1, z1, ZERO)
                sums += x0 * low
                sums += x1 * high
                x_sum += x0 + x1
            if GROUP != 0 and GROUP % 8 == 0:
                g = (unit * 8) // GROUP
                s, z = group_scale(
                    scale, zero, block, lane, g, mask, K, BITS, GROUP, ZERO
                )
                if ZERO == 3:
                    acc += (sums - 8.0 * x_sum) * s + x_sum * z
                else:
                    acc += (sums - x_sum * z) * s
            else:
                acc += sums
    total = tl.sum(acc, axis=1).to(tl.float32)
    if GROUP == 0:
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        total *= tl.load(scale + n, mask=n < N, other=0.0)
    if DECODE == FLOAT8:
        total *= 256.0
    return total, tl.sum(squares, axis=1)


@triton.jit
def float_sums(
    x, norm_weight, weight, block_n, split, M, N,
    K, NORM, TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """As `code_sums` of a weight of floats (N, K); a unit is eight columns here too."""
    BLOCK_K: tl.constexpr = BLOCK_U * 8
    n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    token = tl.arange(0, TOKENS)[:, None, None]
    acc = tl.zeros((TOKENS, BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((TOKENS, 1, BLOCK_K), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BLOCK_K
        k = (start + tl.arange(0, BLOCK_K))[None, None, :]
        here = (n < N) & (k < K)
        w = load_once(weight + n * K + k, here)
        inside = (token < M) & (k < K)
        value, squares = load_activation(
            x + token * K, norm_weight, squares, k, inside, NORM
        )
        acc += value * w.to(tl.float32)
    return tl.sum(acc, axis=2), tl.sum(squares, axis=2)
