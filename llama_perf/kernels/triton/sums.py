"""Triton building blocks: the sums of a product of few tokens in float32.

    y[m, n] = sum over k of x[m, k] * g[k] * w[n, k]

for 16 rows and a stretch of columns. Weights of floats are multiplied here, packed ones
where tensor cores do not take them (`tile_sums`). Codes are unpacked in registers; the
zero point is taken out once a unit with the sum of x. `norm` is g, the weight of an
RMSNorm, or None. With it the squares of x are summed on the way. Of a 2:4 sparse weight
x is picked by position: a pruned weight costs no product.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import (
    FLOAT8,
    OFFSET,
    load_scale,
    load_unit,
    picked,
    scale_and_zero,
    scaled_pair,
    slots,
    stored_value,
    unit_values,
)
from llama_perf.kernels.triton.launch import load_late, load_once, wait_for_input


@triton.jit
def rounded(x):
    """The nearest whole number, the even one of two; |x| below 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def load_activation(x, norm, squares, k, mask):
    """Columns `k` of x * g, float32, and `squares` with those of x added."""
    value = load_late(x + k, mask).to(tl.float32)
    if norm is not None:
        squares += value * value
        value *= tl.load(norm + k, mask=mask, other=0.0).to(tl.float32)
    return value, squares


@triton.jit
def code_sums(
    x, norm, codes, scale, zero, block_n, split, M, N,
    WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) and those of x**2 (TOKENS, 1), float32."""
    K: tl.constexpr = WEIGHT.K
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    at, here = x + token * K, token < M
    acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        start = (split * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        mask = (unit < WEIGHT.UNITS) & (row < N)
        a, b = load_unit(codes, row, unit, mask, WEIGHT)
        sums = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
        x_sum = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
        for PAIR in tl.static_range(4):
            low, high = unit_values(a, b, PAIR, WEIGHT)
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
    total = tl.sum(acc, axis=1)
    if WEIGHT.GROUP == 0:
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        total *= tl.load(scale + n, mask=n < N, other=0.0)
    if WEIGHT.DECODE == FLOAT8:
        total *= 256.0
    return total, tl.sum(squares, axis=1)


@triton.jit
def float_sums(
    x, norm, ready, weight, block_n, split, M, N,
    K, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """As `code_sums` of a weight of floats (N, K); a unit is eight columns here too.

    With DEPENDENT the input is waited for, behind the first loads of the weights.
    """
    COLUMNS: tl.constexpr = BLOCK_U * 8
    n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    token = tl.arange(0, TOKENS)[:, None, None]
    acc = tl.zeros((TOKENS, BLOCK_N, COLUMNS), tl.float32)
    squares = tl.zeros((TOKENS, 1, COLUMNS), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        if DEPENDENT:
            wait_for_input(ready, step)
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
    WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """As `code_sums` of a 2:4 sparse weight."""
    K: tl.constexpr = WEIGHT.K
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
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
