"""Triton building blocks: the sums of a product of few tokens, on tensor cores.

    y[m, n] = sum over k of x[m, k] * g[k] * w[n, k]

The product is transposed: 16 rows of a weight, decoded in registers, are the first
operand, and x the second one, as few columns as there are tokens. So a weight costs its
decoding, not a multiplication for each token. A program takes BLOCK_N rows and BLOCK_U
units of eight columns at a time, as a batch of products: each warp has its own columns.

x * g is rounded to float16, times a power of two for each token: what is not less than
2**-24 of the token's largest keeps 11 bits. The sums are in float32. Of groups that
fill a product the scale is applied to its sum, and the zero to the sum of x; of smaller
groups the weights are rounded to float16.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import (
    FLOAT8,
    FP6,
    OFFSET,
    load_scale,
    packed_code,
    scale_and_zero,
)
from llama_perf.kernels.triton.launch import KNOWN_BOUNDS, wait_for_input
from llama_perf.kernels.triton.peaks import (
    inverse_power_of_two,
    known_peak,
    peak_before_loop,
    power_of_two,
)
from llama_perf.kernels.triton.tile_codes import (
    decoded,
    from_whole,
    middle,
    widest_plane,
)
from llama_perf.kernels.triton.tile_loads import is_ragged, load_planes, tiles_of
from llama_perf.kernels.triton.tile_tokens import load_tile

BITS_OF_X = tl.constexpr(11)
"""Bits of the largest x before the point: sums of sixteen fit float16."""


@triton.jit
def tile_sums(
    x, norm, peaks_in, ready, codes, scale, zero, block_n, split, M, N,
    WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) and those of x**2 (TOKENS, 1), float32.

    `peaks_in` has the largest |x * g| of each token. Without it a program looks for
    those of its own columns. With DEPENDENT the input is waited for, behind the first
    loads of the weights where the peaks are known.
    """
    K: tl.constexpr = WEIGHT.K
    BITS: tl.constexpr = WEIGHT.BITS
    WIDE: tl.constexpr = widest_plane(BITS)
    # Columns of half a word.
    SLOTS: tl.constexpr = 16 // WIDE
    COLUMNS: tl.constexpr = 16 * SLOTS
    BATCH: tl.constexpr = BLOCK_U // (2 * SLOTS)
    HALVES: tl.constexpr = (WEIGHT.UNITS * 8 + SLOTS - 1) // SLOTS
    TILES: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    # Whether the only split has too few tiles for its steps; a tile may not be full.
    SHORT: tl.constexpr = BATCH * STEPS > TILES
    PARTIAL: tl.constexpr = K % COLUMNS != 0 or SHORT
    RAGGED: tl.constexpr = is_ragged(K, BATCH * COLUMNS, STEPS)
    GROUP: tl.constexpr = WEIGHT.GROUP
    LARGE_GROUPS: tl.constexpr = GROUP != 0 and GROUP % COLUMNS == 0
    SMALL_GROUPS: tl.constexpr = GROUP != 0 and not LARGE_GROUPS
    if SMALL_GROUPS:
        ZEROS: tl.constexpr = WEIGHT.ZEROS
    batch = tl.arange(0, BATCH)[:, None, None]
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    within = tl.arange(0, 16)
    # Beyond the last token is the last one once more, and its sums are not stored.
    token = tl.minimum(tl.arange(0, TOKENS), M - 1)[None, None, :]
    acc = tl.zeros((BATCH, BLOCK_N, TOKENS), tl.float32)
    zero_acc = tl.zeros((BATCH, BLOCK_N, TOKENS), tl.float32)
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
        half = tile * 16 + within[None, None, :]
        there = row < N
        if PARTIAL:
            there = there & (half < HALVES)
        planes = load_planes(codes, row, tile, within[None, None, :], there, WEIGHT)
        if SMALL_GROUPS:
            g = half * SLOTS // WEIGHT.GROUP
            s = load_scale(scale, row, g, there, WEIGHT).to(tl.float16)
            of_tile = tile * COLUMNS // WEIGHT.GROUP
            known = there & (of_tile < ZEROS.K)
            z = from_whole(packed_code(zero, row, of_tile, g, known, ZEROS), BITS)
        if peaks_in is not None:
            peak = known_peak(peaks_in, M, TOKENS)
        k = tile * COLUMNS + within[None, :, None] * SLOTS
        values, squares = load_tile(
            x, norm, power_of_two(peak, BITS_OF_X)[None, None, :], squares,
            tile, own, token, k, SLOTS, SLOTS, SLOTS, K, PARTIAL, RAGGED,
        )  # fmt: skip
        tokens, x_sum = (), squares * 0.0
        for SLOT in tl.static_range(SLOTS):
            x_sum += values[SLOT]
            tokens = tokens + (values[SLOT].to(tl.float16),)  # type: ignore[assignment]
        sums = acc
        if LARGE_GROUPS:
            sums = tl.zeros((BATCH, BLOCK_N, TOKENS), tl.float32)
        if SMALL_GROUPS:
            sums = tl.dot(z * s, x_sum.to(tl.float16), sums)
        for SLOT in tl.static_range(SLOTS):
            w = decoded(planes, BITS, WEIGHT.DECODE, SLOT)
            if SMALL_GROUPS:
                w *= s
            sums = tl.dot(w, tokens[SLOT], sums)
        if LARGE_GROUPS:
            g = tile * COLUMNS // GROUP
            known = row < N
            if SHORT:
                known = known & (tile < TILES)
            s, z = scale_and_zero(scale, zero, row, g, known, WEIGHT)
            if WEIGHT.ZERO != OFFSET:
                z = (middle(BITS) - z) * s
            zero_acc += tl.sum(x_sum, axis=1, keep_dims=True) * z
            acc += sums * s
        else:
            acc = sums
    if LARGE_GROUPS:
        acc += zero_acc
    total = (
        tl.trans(tl.sum(acc, axis=0)) * inverse_power_of_two(peak, BITS_OF_X)[:, None]
    )
    if GROUP == 0:
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        total *= tl.load(scale + n, mask=n < N, other=0.0)
    if WEIGHT.DECODE == FP6:
        total *= 4096.0
    if WEIGHT.DECODE == FLOAT8:
        total *= 256.0
    return total, tl.sum(tl.sum(squares, axis=0), axis=0)[:, None]
