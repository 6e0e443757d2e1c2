"""Triton building blocks of the fused kernels: sums of any format, parts of splits.

A program of a fused kernel sums a block of rows over a stretch of columns, its split.
Of a group of rows the last program to arrive adds the splits' parts.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llama_perf.kernels import weight as packed
from llama_perf.kernels.triton.dependent_launch import prefetch
from llama_perf.kernels.triton.sparse import sparse_sums
from llama_perf.kernels.triton.sums import code_sums, float_sums

# The FORMAT of a weight.
FLOATS = tl.constexpr(packed.FLOATS)
SPARSE = tl.constexpr(packed.SPARSE)


@triton.jit
def prefetch_and_wait(
    codes, block_n, split, N, K, FORMAT, WORDS, BITS, BLOCK_U, BLOCK_N, STEPS
):
    """Ask for the first weights, let the next kernel start, and wait for the input."""
    if FORMAT == FLOATS:
        # A line of 128 bytes for each row and so many columns.
        LINE: tl.constexpr = 1024 // BITS
        n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
        k = tl.arange(0, (BLOCK_U * 8 + LINE - 1) // LINE)[None, :] * LINE
        k += split * STEPS * BLOCK_U * 8
        prefetch(codes + (tl.minimum(n, N - 1) * K + tl.minimum(k, K - 1)))
    else:
        # A word of 16 rows is half a line; those of the widest plane come first.
        first = split * STEPS * BLOCK_U * (2 if BITS == 8 else 1)
        word = first + tl.arange(0, BLOCK_U) * (2 if BITS == 8 else 1)
        word = tl.minimum(word, WORDS - 1)
        prefetch(codes + (block_n * (WORDS * 16) + word * 16))
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def token_peak(x, norm_weight, peaks_in, M, K, NORM, READS_PEAKS, TOKENS):
    """The largest |x * g| of each token, (TOKENS,), so large that it / 127 is normal.

    With READS_PEAKS the kernel in front has written it to `peaks_in`.
    """
    SMALLEST: tl.constexpr = 1.5e-36
    if READS_PEAKS:
        m = tl.arange(0, TOKENS)
        known = tl.load(peaks_in + m, mask=m < M, other=0).to(tl.float32, bitcast=True)
        return tl.maximum(known, SMALLEST)
    # As much at once as the registers hold, since each round waits for memory.
    BLOCK: tl.constexpr = 4096 // TOKENS
    token = tl.arange(0, TOKENS)[:, None]
    peak = tl.full((TOKENS, BLOCK), SMALLEST, tl.float32)
    for start in range(0, K, BLOCK):
        k = (start + tl.arange(0, BLOCK))[None, :]
        inside = (token < M) & (k < K)
        value = tl.load(x + token * K + k, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            value *= tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(value))
    return tl.max(peak, axis=1)


@triton.jit
def block_sums(
    x, norm_weight, peaks_in, codes, scale, zero, block_n, split, M, N,
    K, FORMAT, WORDS, BITS, DECODE, GROUP, ZERO, DYNAMIC, NORM, READS_PEAKS, DEPENDENT,
    TOKENS, BLOCK_U, BLOCK_N, STEPS,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) of any format and those of x**2, (TOKENS, 1).

    With DEPENDENT the program asks for its weights and waits for its input first.
    """
    if DEPENDENT:
        prefetch_and_wait(
            codes, block_n, split, N, K, FORMAT, WORDS, BITS, BLOCK_U, BLOCK_N, STEPS
        )
    if FORMAT == FLOATS:
        total, squares = float_sums(
            x, norm_weight, codes, block_n, split, M, N,
            K, NORM, TOKENS, BLOCK_U, BLOCK_N, STEPS,
        )  # fmt: skip
    elif FORMAT == SPARSE:
        total, squares = sparse_sums(
            x, norm_weight, codes, scale, block_n, split, M, N,
            K, WORDS, NORM, TOKENS, BLOCK_U, BLOCK_N, STEPS,
        )  # fmt: skip
    else:
        inverse = 0.0
        if DYNAMIC:
            largest = token_peak(
                x, norm_weight, peaks_in, M, K, NORM, READS_PEAKS, TOKENS
            )
            inverse = (127.0 / largest)[:, None, None]
        total, squares = code_sums(
            x, norm_weight, inverse, codes, scale, zero, block_n, split, M, N,
            K, WORDS, BITS, DECODE, GROUP, ZERO, NORM, DYNAMIC,
            TOKENS, BLOCK_U, BLOCK_N, STEPS,
        )  # fmt: skip
        if DYNAMIC:
            total *= (largest * (1.0 / 127.0))[:, None]
    return total, squares


@triton.jit
def normalized(total, squares, EPS, K, NORM):
    """`total` (TOKENS, n) times the norm's factor, from the sums of squares."""
    if NORM:
        total *= tl.rsqrt(squares / K + EPS)
    return total
