"""Triton kernels of the int8 product: exact int32 sums of int8 by int8.

`few_tokens_int8` takes four columns an instruction (dp4a); ASM off, the same sum is
written out, which the interpreter runs too. `many_tokens_int8` uses the int8 tensor
cores, column 8 u + i of every unit u at a time. Sums stay below 2**31 for K < 2**17.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import load_unit


@triton.jit
def dot4(a, b, c, ASM):
    """`c` plus the dot product of the four int8 of each word of `a` and `b`."""
    if ASM:
        c = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [a, b, c],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        for SLOT in tl.static_range(4):
            left = (a << (24 - 8 * SLOT)) >> 24
            right = (b << (24 - 8 * SLOT)) >> 24
            c += left * right
    return c


@triton.jit
def few_tokens_int8(
    x, codes, out, M, N,
    K: tl.constexpr, ASM: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Words of x (M, 2 units) and of the weight to int32 sums (splits, M, N)."""
    UNITS: tl.constexpr = (K + 7) // 8
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    base = (row // 16) * (UNITS * 32) + row % 16
    acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.int32)
    for step in range(STEPS):
        start = (tl.program_id(1) * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        a, b = load_unit(codes, base, unit, (unit < UNITS) & (row < N), K, 8)
        place = x + token * (UNITS * 2) + unit * 2
        mask = (token < M) & (unit < UNITS)
        x0 = tl.load(place, mask=mask, other=0)
        x1 = tl.load(place + 1, mask=mask, other=0)
        # Written out to one shape: inline assembly takes no broadcast.
        none = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.int32)
        acc = dot4(a + none, x0 + none, acc, ASM)
        acc = dot4(b + none, x1 + none, acc, ASM)
    total = tl.sum(acc, axis=1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m = tl.arange(0, TOKENS)[:, None]
    place = out + tl.program_id(1) * M * N + m * N + n
    tl.store(place, total, mask=(m < M) & (n < N))


@triton.jit
def many_tokens_int8(
    x, codes, out, M, N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """int8 x (M, 8 units) and words of the weight to int32 sums (M, N)."""
    UNITS: tl.constexpr = (K + 7) // 8
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    base = (n // 16) * (UNITS * 32) + n % 16
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(STEPS):
        column = step * BLOCK_U + tl.arange(0, BLOCK_U)
        unit, x_unit = column[:, None], column[None, :]
        a, b = load_unit(codes, base, unit, (unit < UNITS) & (n < N), K, 8)
        for SLOT in tl.static_range(8):
            word = a if SLOT < 4 else b
            weight = (word >> (8 * (SLOT % 4))).to(tl.int8)
            place = x + m * (UNITS * 8) + x_unit * 8 + SLOT
            mask = (m < M) & (x_unit < UNITS)
            tokens = tl.load(place, mask=mask, other=0)
            acc = tl.dot(tokens, weight, acc, out_dtype=tl.int32)
    tl.store(out + m * N + n, acc, mask=(m < M) & (n < N))
