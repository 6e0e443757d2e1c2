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
    SPARSE,
    SPARSE_GROUP,
    load_scale,
    packed_code,
    scale_and_zero,
)
from llama_perf.kernels.triton.launch import KNOWN_BOUNDS, load_once, wait_for_input
from llama_perf.kernels.triton.peaks import (
    inverse_power_of_two,
    known_peak,
    power_of_two,
    token_peak,
)
from llama_perf.kernels.triton.tile_codes import (
    INT4,
    decoded,
    from_whole,
    middle,
    widened,
    widest_plane,
    with_zeros,
)
from llama_perf.kernels.triton.tile_tokens import load_tile


@triton.jit
def plane_halves(codes, row, tile, within, inside, WEIGHT):
    """int16 halves `within` of a tile's eight words, of the widest plane."""
    # The part that is the same for every tile comes first, to be computed once.
    place = codes.to(tl.pointer_type(tl.int16), bitcast=True)
    place += (row // 16) * (WEIGHT.WORDS * 32) + (row % 16) * 2
    place += (within // 2) * 32 + within % 2
    return load_once(place + tile * 256, inside)


@triton.jit
def plane_bytes(codes, row, tile, within, inside, START, WORDS_OF_TILE, WEIGHT):
    """uint8 bytes `within` of a tile's words, of the plane from word START of a row."""
    place = codes.to(tl.pointer_type(tl.uint8), bitcast=True)
    place += (row // 16) * (WEIGHT.WORDS * 64) + (row % 16) * 4
    place += (START + within // 4) * 64 + within % 4
    return load_once(place + tile * (WORDS_OF_TILE * 64), inside)


@triton.jit
def load_planes(codes, row, tile, within, there, WEIGHT):
    """The words of a tile's halves, and the narrower planes' pieces, for `decoded`."""
    BITS: tl.constexpr = WEIGHT.BITS
    WIDE: tl.constexpr = widest_plane(BITS)
    UNITS: tl.constexpr = WEIGHT.UNITS
    START2: tl.constexpr = UNITS if BITS & 4 else 0
    START1: tl.constexpr = START2 + ((UNITS + 1) // 2 if BITS & 2 else 0)
    planes = (plane_halves(codes, row, tile, within, there, WEIGHT),)
    if BITS & 2 and WIDE == 4:
        pairs = plane_bytes(codes, row, tile, within, there, START2, 4, WEIGHT)
        if WEIGHT.FORMAT != SPARSE:
            pairs = widened(pairs, WEIGHT.DECODE == FP6)
        planes = planes + (pairs,)  # type: ignore[assignment]
    if BITS & 1 and WIDE == 2:
        ones = plane_bytes(codes, row, tile, within, there, START1, 4, WEIGHT)
        planes = planes + (widened(ones, False),)  # type: ignore[assignment]
    elif BITS & 1 and WIDE == 4:
        byte = plane_bytes(codes, row, tile, within // 2, there, START1, 2, WEIGHT)
        ones = (byte.to(tl.int16) >> (4 * (within % 2)).to(tl.int16)) & 15
        planes = planes + (ones,)  # type: ignore[assignment]
    return planes


@triton.constexpr_function
def is_ragged(columns: int, of_step: int, steps: int) -> bool:
    """Whether a split's steps may have more columns than are left for it."""
    if KNOWN_BOUNDS.value:
        # There every split has all steps.
        of_step *= steps
    remaining: int = columns % of_step
    return remaining != 0


@triton.jit
def steps_of(split, STEPS, TILES, TILES_A_STEP):
    """How many steps of a split are there: STEPS of all but the last one."""
    TOTAL: tl.constexpr = (TILES + TILES_A_STEP - 1) // TILES_A_STEP
    steps = STEPS
    if TOTAL % STEPS != 0 and not KNOWN_BOUNDS:
        steps = tl.minimum(TOTAL - split * STEPS, STEPS)
        # No branch around the loop, in which the program waits.
        tl.assume(steps > 0)
    return steps


@triton.jit
def first_tile(own, steps, TILES, TILES_A_STEP, RAGGED):
    """Where a split begins to load, whose own tiles begin at `own`.

    The last of several begins earlier, so that its steps end where the tiles do.
    """
    if RAGGED:
        own = tl.maximum(tl.minimum(own, TILES - steps * TILES_A_STEP), 0)
    return own


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
    IS_SPARSE: tl.constexpr = WEIGHT.FORMAT == SPARSE
    # Columns of half a word; of a sparse weight twice those that are stored.
    STORED: tl.constexpr = 16 // WIDE
    SLOTS: tl.constexpr = 2 * STORED if IS_SPARSE else STORED
    COLUMNS: tl.constexpr = 16 * SLOTS
    BATCH: tl.constexpr = BLOCK_U // (2 * STORED)
    HALVES: tl.constexpr = (WEIGHT.UNITS * 8 + STORED - 1) // STORED
    TILES: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    # Whether the only split has too few tiles for its steps; a tile may not be full.
    SHORT: tl.constexpr = BATCH * STEPS > TILES
    PARTIAL: tl.constexpr = K % COLUMNS != 0 or SHORT
    RAGGED: tl.constexpr = is_ragged(K, BATCH * COLUMNS, STEPS)
    GROUP: tl.constexpr = SPARSE_GROUP if IS_SPARSE else WEIGHT.GROUP
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
    own = split * (STEPS * BATCH)
    steps = steps_of(split, STEPS, TILES, BATCH)
    first = first_tile(own, steps, TILES, BATCH, RAGGED)
    peak = tl.full((TOKENS,), 1.0, tl.float32)
    if peaks_in is None:
        if DEPENDENT:
            wait_for_input(ready, 0)
        SPAN: tl.constexpr = STEPS * BATCH * COLUMNS
        peak = token_peak(x, norm, own * COLUMNS, M, K, SPAN, TOKENS)
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
        tokens, x_sum, squares = load_tile(
            x, norm, power_of_two(peak)[None, None, :], squares, tile, own, token,
            SLOTS, K, PARTIAL, RAGGED,
        )  # fmt: skip
        sums = acc
        if LARGE_GROUPS:
            sums = tl.zeros((BATCH, BLOCK_N, TOKENS), tl.float32)
        if SMALL_GROUPS:
            sums = tl.dot(z * s, x_sum.to(tl.float16), sums)
        if IS_SPARSE:
            pairs = with_zeros(planes[0], planes[1])
        for SLOT in tl.static_range(SLOTS):
            if IS_SPARSE:
                pair = (pairs[SLOT // 2 % 2],)
                w = decoded(pair, 4, INT4, SLOT // 4 * 2 + SLOT % 2)
            else:
                w = decoded(planes, BITS, WEIGHT.DECODE, SLOT)
            if SMALL_GROUPS:
                w *= s
            sums = tl.dot(w, tokens[SLOT], sums)
        if LARGE_GROUPS:
            g = tile * COLUMNS // GROUP
            known = row < N
            if SHORT:
                known = known & (tile < TILES)
            if IS_SPARSE:
                s = load_scale(scale, row, g, known, WEIGHT)
            else:
                s, z = scale_and_zero(scale, zero, row, g, known, WEIGHT)
                if WEIGHT.ZERO != OFFSET:
                    z = (middle(BITS) - z) * s
                zero_acc += tl.sum(x_sum, axis=1, keep_dims=True) * z
            acc += sums * s
        else:
            acc = sums
    if LARGE_GROUPS and not IS_SPARSE:
        acc += zero_acc
    total = tl.trans(tl.sum(acc, axis=0)) * inverse_power_of_two(peak)[:, None]
    if GROUP == 0:
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        total *= tl.load(scale + n, mask=n < N, other=0.0)
    if WEIGHT.DECODE == FP6:
        total *= 4096.0
    if WEIGHT.DECODE == FLOAT8:
        total *= 256.0
    return total, tl.sum(tl.sum(squares, axis=0), axis=0)[:, None]
