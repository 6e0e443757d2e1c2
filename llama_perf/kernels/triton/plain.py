"""Triton building block: the sums of a product of few tokens with a weight of floats.

As `triton_sums`, of a weight (N, K) in rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llama_perf.kernels.triton.sums import gained


@triton.jit
def plain_sums(
    x,
    gain,
    weight,
    block_n,
    split,
    M,
    N,
    K: tl.constexpr,
    NORM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):
    """As `code_sums` of `triton_sums`; a unit is eight columns here too."""
    BLOCK_K: tl.constexpr = BLOCK_U * 8
    n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    token = tl.arange(0, TOKENS)[:, None, None]
    acc = tl.zeros((TOKENS, BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((TOKENS, 1, BLOCK_K), tl.float32)
    for step in range(STEPS):
        start = (split * STEPS + step) * BLOCK_K
        k = (start + tl.arange(0, BLOCK_K))[None, None, :]
        w = tl.load(
            weight + n * K + k,
            mask=(n < N) & (k < K),
            other=0.0,
            eviction_policy="evict_first",
        )
        inside = (token < M) & (k < K)
        value, squares = gained(x + token * K, gain, squares, k, inside, NORM)
        acc += value * w.to(tl.float32)
    return tl.sum(acc, axis=2), tl.sum(squares, axis=2)
