"""Triton kernels of the product with a 2:4 sparse int4 weight.

The formula is that of `kernels/sparse.py`. A unit is eight stored values: four quads,
sixteen columns of the weight. `few_tokens_sparse` is a split-K GEMV that picks x by
position, so that a pruned weight costs no product. `many_tokens_sparse` spreads a
unit's values over its sixteen columns and multiplies them on tensor cores, column
16 u + i of every unit u at a time, so that no value has to change its thread.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import half_to_float, load_unit
from llama_perf.kernels.triton.sums import load_activation


@triton.jit
def stored_value(a, SLOT):
    """Stored value SLOT of a unit, float32; SLOT and SLOT + 4 share their unpacking."""
    word = ((a >> (4 * (SLOT % 4))) & 0x000F000F) | 0x64006400
    return half_to_float(word, SLOT >= 4) - 1032.0


@triton.jit
def picked(b, x0, x1, x2, x3, QUAD):
    """The two of a quad's four x that its stored values multiply."""
    BIT: tl.constexpr = 1 << (4 * (QUAD % 2) + 16 * (QUAD // 2))
    first = tl.where((b & BIT) != 0, x1, x0)
    first = tl.where((b & (2 * BIT)) != 0, x2, first)
    second = tl.where((b & (4 * BIT)) != 0, x3, x2)
    second = tl.where((b & (8 * BIT)) != 0, second, x1)
    return first, second


@triton.jit
def spread(b, first, second, QUAD):
    """The four weights of a quad, two of them 0."""
    SHIFT: tl.constexpr = 4 * (QUAD % 2) + 16 * (QUAD // 2)
    low = (b >> SHIFT) & 3
    high = (b >> (SHIFT + 2)) & 3
    w0 = tl.where(low == 0, first, 0.0)
    w1 = tl.where(low == 1, first, tl.where(high == 1, second, 0.0))
    w2 = tl.where(low == 2, first, tl.where(high == 2, second, 0.0))
    w3 = tl.where(high == 3, second, 0.0)
    return w0, w1, w2, w3


@triton.jit
def unit_scale(scale, block, lane, unit, mask, K):
    """The scale of a unit's group, float32."""
    GROUPS: tl.constexpr = (K + 127) // 128
    place = block * (GROUPS * 16) + (unit // 8) * 16 + lane
    return tl.load(scale + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def sparse_sums(
    x, norm_weight, codes, scale, block_n, split, M, N,
    K, WORDS, NORM, TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """As `code_sums` of `sums`."""
    STORED: tl.constexpr = K // 2
    UNITS: tl.constexpr = (STORED + 7) // 8
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, None, :]
    token = tl.arange(0, TOKENS)[:, None, None]
    block, lane = row // 16, row % 16
    base = block * (WORDS * 16) + lane
    acc = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_U, 1), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BLOCK_U
        unit = (start + tl.arange(0, BLOCK_U))[None, :, None]
        mask = (unit < UNITS) & (row < N)
        a, b = load_unit(codes, base, unit, mask, STORED, 6)
        sums = tl.zeros((TOKENS, BLOCK_U, BLOCK_N), tl.float32)
        for QUAD in tl.static_range(4):
            k = unit * 16 + 4 * QUAD
            at, inside = x + token * K, (token < M) & (k < K)
            x0, squares = load_activation(at, norm_weight, squares, k, inside, NORM)
            x1, squares = load_activation(at, norm_weight, squares, k + 1, inside, NORM)
            x2, squares = load_activation(at, norm_weight, squares, k + 2, inside, NORM)
            x3, squares = load_activation(at, norm_weight, squares, k + 3, inside, NORM)
            lower, upper = picked(b, x0, x1, x2, x3, QUAD)
            sums += lower * stored_value(a, 2 * QUAD)
            sums += upper * stored_value(a, 2 * QUAD + 1)
        acc += sums * unit_scale(scale, block, lane, unit, mask, K)
    return tl.sum(acc, axis=1), tl.sum(squares, axis=1)


@triton.jit
def few_tokens_sparse(
    x, codes, scale, out, M, N,
    K: tl.constexpr, WORDS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """(M, K) times the transposed weight, float32 or x's dtype (splits, M, N)."""
    total, _ = sparse_sums(
        x, x, codes, scale, tl.program_id(0), tl.program_id(1), M, N,
        K, WORDS, False, TOKENS, BLOCK_U, BLOCK_N, STEPS,
    )  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m = tl.arange(0, TOKENS)[:, None]
    place = out + tl.program_id(1) * M * N + m * N + n
    tl.store(place, total.to(out.dtype.element_ty), mask=(m < M) & (n < N))


@triton.jit
def add_column(acc, x, w, m, k, M, K, WIDE):
    """`acc` plus columns `k` of x times those weights, rounded to x's dtype."""
    piece = tl.load(x + m * K + k, mask=(m < M) & (k < K), other=0.0)
    weight = w.to(piece.dtype)
    if WIDE:
        piece, weight = piece.to(tl.float32), weight.to(tl.float32)
    return tl.dot(piece, weight, acc, input_precision="ieee")


@triton.jit
def many_tokens_sparse(
    x, codes, scale, out, M, N,
    K: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """(M, K) times the transposed weight in x's dtype, (M, N)."""
    STORED: tl.constexpr = K // 2
    UNITS: tl.constexpr = (STORED + 7) // 8
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    block, lane = n // 16, n % 16
    base = block * (WORDS * 16) + lane
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        column = step * BLOCK_U + tl.arange(0, BLOCK_U)
        unit, x_unit = column[:, None], column[None, :]
        mask = (unit < UNITS) & (n < N)
        a, b = load_unit(codes, base, unit, mask, STORED, 6)
        s = unit_scale(scale, block, lane, unit, mask, K)
        for QUAD in tl.static_range(4):
            first = stored_value(a, 2 * QUAD) * s
            second = stored_value(a, 2 * QUAD + 1) * s
            w0, w1, w2, w3 = spread(b, first, second, QUAD)
            k = x_unit * 16 + 4 * QUAD
            acc = add_column(acc, x, w0, m, k, M, K, WIDE)
            acc = add_column(acc, x, w1, m, k + 1, M, K, WIDE)
            acc = add_column(acc, x, w2, m, k + 2, M, K, WIDE)
            acc = add_column(acc, x, w3, m, k + 3, M, K, WIDE)
    place = out + m * N + n
    tl.store(place, acc.to(out.dtype.element_ty), mask=(m < M) & (n < N))
