"""Triton kernels of the weight-only products, for every format of packed codes.

    y[m, n] = sum over k of x[m, k] * w[n, k]
    w[n, k] = v[n, k] * s[n]                        one scale for a row (GROUP = 0)
    w[n, k] = (c[n, k] - z[n, k / G]) * s[n, k / G]   ZERO 1: int32, 2: packed codes
    w[n, k] = (c[n, k] - 8) * s[n, k / G] + z[n, k / G]                   3: an offset

`few_tokens` is a split-K GEMV over the sums of `sums.code_sums`. `many_tokens` unpacks
a tile and multiplies it on tensor cores, column 8 u + i of every unit u at a time, so
that no value has to change its thread.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import (
    FLOAT8,
    code_pair,
    first_slot,
    load_unit,
    second_slot,
    values,
)
from llama_perf.kernels.triton.sums import code_sums, group_scale, weight_pair


@triton.jit
def few_tokens(
    x, codes, scale, zero, out, M, N,
    K: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, DECODE: tl.constexpr,
    GROUP: tl.constexpr, ZERO: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """(M, K) times the transposed weight, float32 or x's dtype (splits, M, N)."""
    total, _ = code_sums(
        x, x, 0.0, codes, scale, zero, tl.program_id(0), tl.program_id(1), M, N,
        K, WORDS, BITS, DECODE, GROUP, ZERO, False, False,
        TOKENS, BLOCK_U, BLOCK_N, STEPS,
    )  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m = tl.arange(0, TOKENS)[:, None]
    place = out + tl.program_id(1) * M * N + m * N + n
    tl.store(place, total.to(out.dtype.element_ty), mask=(m < M) & (n < N))


@triton.jit
def many_tokens(
    x, codes, scale, zero, out, M, N,
    K: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, DECODE: tl.constexpr,
    GROUP: tl.constexpr, ZERO: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """(M, K) times the transposed weight in x's dtype, (M, N)."""
    UNITS: tl.constexpr = (K + 7) // 8
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    block, lane = n // 16, n % 16
    base = block * (WORDS * 16) + lane
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        column = step * BLOCK_U + tl.arange(0, BLOCK_U)
        unit, x_unit = column[:, None], column[None, :]
        mask = (unit < UNITS) & (n < N)
        a, b = load_unit(codes, base, unit, mask, K, BITS)
        if GROUP != 0 and GROUP % 8 == 0:
            g = (unit * 8) // GROUP
            s0, z0 = group_scale(
                scale, zero, block, lane, g, mask, K, BITS, GROUP, ZERO
            )
            s1, z1 = s0, z0
        for PAIR in tl.static_range(4):
            low, high = values(code_pair(a, b, PAIR, BITS), DECODE)
            slot0, slot1 = first_slot(PAIR, BITS), second_slot(PAIR, BITS)
            if GROUP != 0:
                if GROUP % 8 != 0:
                    k0, k1 = unit * 8 + slot0, unit * 8 + slot1
                    in0, in1 = mask & (k0 < K), mask & (k1 < K)
                    g0, g1 = k0 // GROUP, k1 // GROUP
                    s0, z0 = group_scale(
                        scale, zero, block, lane, g0, in0, K, BITS, GROUP, ZERO
                    )
                    s1, z1 = group_scale(
                        scale, zero, block, lane, g1, in1, K, BITS, GROUP, ZERO
                    )
                low, high = weight_pair(low, high, s0, z0, s1, z1, ZERO)
            k0, k1 = x_unit * 8 + slot0, x_unit * 8 + slot1
            x0 = tl.load(x + m * K + k0, mask=(m < M) & (k0 < K), other=0.0)
            x1 = tl.load(x + m * K + k1, mask=(m < M) & (k1 < K), other=0.0)
            w0, w1 = low.to(x0.dtype), high.to(x1.dtype)
            if WIDE:
                x0, x1 = x0.to(tl.float32), x1.to(tl.float32)
                w0, w1 = w0.to(tl.float32), w1.to(tl.float32)
            acc = tl.dot(x0, w0, acc, input_precision="ieee")
            acc = tl.dot(x1, w1, acc, input_precision="ieee")
    if GROUP == 0:
        acc *= tl.load(scale + n, mask=n < N, other=0.0)
    if DECODE == FLOAT8:
        acc *= 256.0
    place = out + m * N + n
    tl.store(place, acc.to(out.dtype.element_ty), mask=(m < M) & (n < N))
