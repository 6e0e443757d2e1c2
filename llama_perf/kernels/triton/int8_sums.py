"""Triton building blocks: sums of int8 tokens with int8 codes, on tensor cores.

The codes lie in memory as the product takes them. x * g is rounded to int8 by the
token's largest magnitude, which the kernel in front leaves, or which is looked for.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.launch import KNOWN_BOUNDS, load_late, wait_for_input
from llama_perf.kernels.triton.peaks import known_peak, peak_before_loop
from llama_perf.kernels.triton.sums import rounded
from llama_perf.kernels.triton.tile_loads import is_ragged, plane_bytes, tiles_of


@triton.jit
def int8_sums(
    x, norm, peaks_in, ready, codes, block_n, split, M, N,
    WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """Exact int32 sums (TOKENS, BLOCK_N) of int8 tokens, and those of x**2 as floats.

    `x` are int8, (M, 8 units), or floats, which `peaks_in` or their own peaks turn into
    int8. With DEPENDENT the input is waited for, behind the first loads of the weights.
    """
    K: tl.constexpr = WEIGHT.K
    BATCH: tl.constexpr = BLOCK_U // 4
    TILES: tl.constexpr = (K + 31) // 32
    PARTIAL: tl.constexpr = K % 32 != 0 or BATCH * STEPS > TILES
    RAGGED: tl.constexpr = is_ragged(K, BLOCK_U * 8, STEPS)
    FLOAT: tl.constexpr = x.dtype.element_ty != tl.int8
    batch = tl.arange(0, BATCH)[:, None, None]
    row = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    within = tl.arange(0, 32)
    token = tl.arange(0, TOKENS)[None, None, :]
    acc = tl.zeros((BATCH, BLOCK_N, TOKENS), tl.int32)
    squares = tl.zeros((BATCH, 32, TOKENS), tl.float32)
    largest = tl.full((TOKENS,), 1.0, tl.float32)
    if FLOAT:
        largest = peak_before_loop(
            x, norm, peaks_in, ready, 0, M, K, K, TOKENS, DEPENDENT
        )
    own, steps, first = tiles_of(split, STEPS, TILES, BATCH, RAGGED)
    for step in tl.range(STEPS if KNOWN_BOUNDS else steps, num_stages=STAGES):
        if DEPENDENT:
            wait_for_input(ready, step)
        if FLOAT and peaks_in is not None:
            largest = known_peak(peaks_in, M, TOKENS)
        tile = first + step * BATCH + batch
        k = tile * 32 + within[None, :, None]
        there, inside = row < N, token < M
        if RAGGED:
            inside = inside & (k < K) & (tile >= own)
        if PARTIAL:
            column = tile * 32 + within[None, None, :]
            there = there & (column < WEIGHT.UNITS * 8)
        w = plane_bytes(codes, row, tile, within[None, None, :], there, 0, 8, WEIGHT)
        if FLOAT:
            value = load_late(x + token * K + k, inside).to(tl.float32)
            if norm is not None:
                squares += value * value
                value *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
            tokens = rounded(value * (127.0 / largest)[None, None, :]).to(tl.int8)
        else:
            at = x + token * (WEIGHT.UNITS * 8)
            tokens = tl.load(at + k, mask=inside, other=0)
        acc = tl.dot(w.to(tl.int8, bitcast=True), tokens, acc, out_dtype=tl.int32)
    total = tl.trans(tl.sum(acc, axis=0))
    squares = tl.sum(tl.sum(squares, axis=0), axis=0)
    return total, squares[:, None], largest
