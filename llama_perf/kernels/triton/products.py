"""Triton kernels of the products, for every format of packed codes.

    y[m, n] = sum over k of x[m, k] * w[n, k]
    w[n, k] = v[n, k] * s[n]                        one scale for a row (GROUP = 0)
    w[n, k] = (c[n, k] - z[n, k / G]) * s[n, k / G]       with PACKED zeros
    w[n, k] = (c[n, k] - 8) * s[n, k / G] + z[n, k / G]   with an OFFSET

and the 2:4 sparse ones of `kernels/sparse.py`. `few_tokens` has programs for splits of
K, over the sums of `block_sums`. `many_tokens` unpacks a tile and multiplies it on
tensor cores, column 8 u + i of every unit u at a time (of a sparse weight 16 u + i), so
that no value has to change its thread. Those of int8 tokens have exact int32 sums,
below 2**31 for K < 2**17.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.block_sums import block_sums
from llama_perf.kernels.triton.codes import (
    FLOAT8,
    SPARSE,
    load_scale,
    load_unit,
    scale_and_zero,
    scaled,
    scaled_pair,
    slots,
    spread,
    stored_value,
    unit_values,
)
from llama_perf.kernels.triton.int8_sums import int8_sums
from llama_perf.kernels.triton.launch import INTERPRETED


@triton.jit
def few_tokens(
    x, codes, scale, zero, out, M, N, WEIGHT: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(M, K) times the transposed weight, float32 or x's dtype (splits, M, N)."""
    total, _ = block_sums(
        x, None, None, None, codes, scale, zero,
        tl.program_id(0), tl.program_id(1), M, N,
        WEIGHT, False, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
    )  # fmt: skip
    store_few(out, total, M, N, TOKENS, BLOCK_N)


@triton.jit
def many_tokens(
    x, codes, scale, zero, out, M, N, WEIGHT: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """(M, K) times the transposed weight in x's dtype, (M, N)."""
    K: tl.constexpr = WEIGHT.K
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    m = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[:, None]
    acc = tl.zeros((TOKENS, BLOCK_N), tl.float32)
    for step in range(STEPS):
        column = step * BLOCK_U + tl.arange(0, BLOCK_U)
        unit, x_unit = column[:, None], column[None, :]
        mask = (unit < WEIGHT.UNITS) & (n < N)
        a, b = load_unit(codes, n, unit, mask, WEIGHT)
        if WEIGHT.FORMAT == SPARSE:
            s = load_scale(scale, n, unit // 8, mask, WEIGHT)
            for QUAD in tl.static_range(4):
                first = stored_value(a, 2 * QUAD) * s
                second = stored_value(a, 2 * QUAD + 1) * s
                w0, w1, w2, w3 = spread(b, first, second, QUAD)
                k = x_unit * 16 + 4 * QUAD
                acc = add_product(acc, load_column(x, m, k, M, K), w0)
                acc = add_product(acc, load_column(x, m, k + 1, M, K), w1)
                acc = add_product(acc, load_column(x, m, k + 2, M, K), w2)
                acc = add_product(acc, load_column(x, m, k + 3, M, K), w3)
        else:
            if WEIGHT.GROUP != 0 and WEIGHT.GROUP % 8 == 0:
                g = (unit * 8) // WEIGHT.GROUP
                s, z = scale_and_zero(scale, zero, n, g, mask, WEIGHT)
            for PAIR in tl.static_range(4):
                low, high = unit_values(a, b, PAIR, WEIGHT)
                slot0, slot1 = slots(PAIR, WEIGHT.BITS)
                if WEIGHT.GROUP % 8 != 0:
                    k0, k1 = unit * 8 + slot0, unit * 8 + slot1
                    low, high = scaled_pair(
                        low, high, scale, zero, n, k0, k1, mask, WEIGHT
                    )
                elif WEIGHT.GROUP != 0:
                    low, high = scaled(low, s, z, WEIGHT), scaled(high, s, z, WEIGHT)
                # Both are made before one is multiplied: that takes half the barriers.
                x0 = load_column(x, m, x_unit * 8 + slot0, M, K)
                x1 = load_column(x, m, x_unit * 8 + slot1, M, K)
                low, high = low.to(x0.dtype), high.to(x1.dtype)
                acc = add_product(acc, x0, low)
                acc = add_product(acc, x1, high)
    if WEIGHT.FORMAT != SPARSE and WEIGHT.GROUP == 0:
        acc *= tl.load(scale + n, mask=n < N, other=0.0)
    if WEIGHT.DECODE == FLOAT8:
        acc *= 256.0
    place = out + m * N + n
    tl.store(place, acc.to(out.dtype.element_ty), mask=(m < M) & (n < N))


@triton.jit
def load_column(x, m, k, M, K):
    """Columns `k` of tokens `m`."""
    return tl.load(x + m * K + k, mask=(m < M) & (k < K), other=0.0)


@triton.jit
def add_product(acc, x, w):
    """`acc` plus x times weights, rounded to x's dtype."""
    w = w.to(x.dtype)
    if INTERPRETED:
        # The interpreter has no products of bfloat16.
        x, w = x.to(tl.float32), w.to(tl.float32)
    return tl.dot(x, w, acc, input_precision="ieee")


@triton.jit
def few_tokens_int8(
    x, codes, out, M, N, WEIGHT: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """int8 x (M, 8 units) and words of the weight to int32 sums (splits, M, N)."""
    total, _, _ = int8_sums(
        x, None, None, None, codes, tl.program_id(0), tl.program_id(1), M, N,
        WEIGHT, False, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
    )  # fmt: skip
    store_few(out, total, M, N, TOKENS, BLOCK_N)


@triton.jit
def store_few(out, total, M, N, TOKENS, BLOCK_N):
    """Sums (TOKENS, BLOCK_N) of a program's split to (splits, M, N)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m = tl.arange(0, TOKENS)[:, None]
    place = out + tl.program_id(1) * M * N + m * N + n
    tl.store(place, total.to(out.dtype.element_ty), mask=(m < M) & (n < N))


@triton.jit
def many_tokens_int8(
    x, codes, out, M, N, WEIGHT: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """int8 x (M, 8 units) and words of the weight to int32 sums (M, N)."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    m = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[:, None]
    acc = tl.zeros((TOKENS, BLOCK_N), tl.int32)
    for step in range(STEPS):
        column = step * BLOCK_U + tl.arange(0, BLOCK_U)
        unit, x_unit = column[:, None], column[None, :]
        a, b = load_unit(codes, n, unit, (unit < WEIGHT.UNITS) & (n < N), WEIGHT)
        for SLOT in tl.static_range(8):
            word = a if SLOT < 4 else b
            weight = (word >> (8 * (SLOT % 4))).to(tl.int8)
            place = x + m * (WEIGHT.UNITS * 8) + x_unit * 8 + SLOT
            mask = (m < M) & (x_unit < WEIGHT.UNITS)
            tokens = tl.load(place, mask=mask, other=0)
            acc = tl.dot(tokens, weight, acc, out_dtype=tl.int32)
    tl.store(out + m * N + n, acc, mask=(m < M) & (n < N))
