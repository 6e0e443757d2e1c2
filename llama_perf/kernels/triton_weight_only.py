"""Triton kernels of the weight-only products, for every format of packed codes.

    y[m, n] = sum over k of x[m, k] * w[n, k]
    w[n, k] = v[n, k] * s[n]                        one scale for a row (GROUP = 0)
    w[n, k] = (c[n, k] - z[n, k / G]) * s[n, k / G]   ZERO 1: int32, 2: packed codes
    w[n, k] = (c[n, k] - 8) * s[n, k / G] + z[n, k / G]                   3: an offset

`few_tokens` is a split-K GEMV: codes are unpacked in registers and multiplied in
float32, the zero point taken out once a unit with the sum of x. `many_tokens` unpacks
a tile and multiplies it on tensor cores, column 8 u + i of every unit u at a time, so
that no value has to change its thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llama_perf.kernels.triton_codes import (
    FLOAT8,
    code_pair,
    first_slot,
    load_unit,
    packed_code,
    second_slot,
    values,
)


@triton.jit
def group_scale(
    scale,
    zero,
    block,
    lane,
    group,
    mask,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
):
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
def weight_pair(low, high, s0, z0, s1, z1, ZERO: tl.constexpr):
    """Two codes with their groups' scales and zeros, as weights."""
    if ZERO == 3:
        first, second = (low - 8.0) * s0 + z0, (high - 8.0) * s1 + z1
    else:
        first, second = (low - z0) * s0, (high - z1) * s1
    return first, second


@triton.jit
def few_tokens(
    x,
    codes,
    scale,
    zero,
    out,
    M,
    N,
    K: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    DECODE: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):
    """(M, K) times the transposed weight, float32 or x's dtype (splits, M, N)."""
    UNITS: tl.constexpr = (K + 7) // 8
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    block, lane = row // 16, row % 16
    base = block * (WORDS * 16) + lane
    acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    for step in range(STEPS):
        start = (tl.program_id(1) * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        mask = (unit < UNITS) & (row < N)
        a, b = load_unit(codes, base, unit, mask, K, BITS)
        sums = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
        x_sum = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
        for PAIR in tl.static_range(4):
            low, high = values(code_pair(a, b, PAIR, BITS), DECODE)
            k0 = unit * 8 + first_slot(PAIR, BITS)
            k1 = unit * 8 + second_slot(PAIR, BITS)
            place = x + token * K
            x0 = tl.load(place + k0, mask=(token < M) & (k0 < K), other=0.0)
            x1 = tl.load(place + k1, mask=(token < M) & (k1 < K), other=0.0)
            x0, x1 = x0.to(tl.float32), x1.to(tl.float32)
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
            s, z = group_scale(
                scale,
                zero,
                block,
                lane,
                (unit * 8) // GROUP,
                mask,
                K,
                BITS,
                GROUP,
                ZERO,
            )
            if ZERO == 3:
                acc += (sums - 8.0 * x_sum) * s + x_sum * z
            else:
                acc += (sums - x_sum * z) * s
        else:
            acc += sums
    total = tl.sum(acc, axis=1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m = tl.arange(0, TOKENS)[:, None]
    if GROUP == 0:
        total *= tl.load(scale + n, mask=n < N, other=0.0)
    if DECODE == FLOAT8:
        total *= 256.0
    place = out + tl.program_id(1) * M * N + m * N + n
    tl.store(place, total.to(out.dtype.element_ty), mask=(m < M) & (n < N))


@triton.jit
def many_tokens(
    x,
    codes,
    scale,
    zero,
    out,
    M,
    N,
    K: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    DECODE: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):
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
            s0, z0 = group_scale(
                scale,
                zero,
                block,
                lane,
                (unit * 8) // GROUP,
                mask,
                K,
                BITS,
                GROUP,
                ZERO,
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
