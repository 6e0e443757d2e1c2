"""Triton building blocks: the sums of one program, of any format.

    y[m, n] = sum over k of x[m, k] * g[k] * w[n, k]

for BLOCK_N rows and a stretch of columns, the program's split. `norm` is g, the weight
of an RMSNorm, or None. With it the squares of x are summed on the way: the norm's
reciprocal root is one factor for each token, so it can wait for the end. Of a group of
rows the last program to arrive adds the splits' parts.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from llama_perf.kernels.triton.codes import FLOATS, SPARSE
from llama_perf.kernels.triton.digit_sums import digit_sums
from llama_perf.kernels.triton.int8_sums import int8_sums
from llama_perf.kernels.triton.launch import INTERPRETED, prefetch, wait_for_input
from llama_perf.kernels.triton.sums import code_sums, float_sums, sparse_sums
from llama_perf.kernels.triton.tile_sums import tile_sums


@triton.jit
def prefetch_codes(codes, block_n, split, N, WEIGHT, BLOCK_U, BLOCK_N, STEPS):
    """Ask for the first codes: those of the widest plane come first."""
    block = block_n * (BLOCK_N // 16) + tl.arange(0, BLOCK_N // 16)[:, None]
    block = tl.minimum(block, (N - 1) // 16)
    # A word of 16 rows is half a line.
    EACH: tl.constexpr = 2 if WEIGHT.BITS == 8 else 1
    word = split * STEPS * BLOCK_U * EACH + tl.arange(0, BLOCK_U) * EACH
    word = tl.minimum(word, WEIGHT.WORDS - 1)[None, :]
    prefetch(codes + (block * (WEIGHT.WORDS * 16) + word * 16))


@triton.jit
def block_sums(
    x, norm, peaks_in, ready, codes, scale, zero, block_n, split, M, N,
    WEIGHT, DEPENDENT,
    TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
):  # fmt: skip
    """Sums (TOKENS, BLOCK_N) of any format and those of x**2, (TOKENS, 1).

    With DEPENDENT the program asks for its first weights and waits for its input, as
    `wait_for_input` says: in its loop where weights are copied asynchronously. Where it
    waits for a kernel, it lets the next one start.
    """
    K: tl.constexpr = WEIGHT.K
    if DEPENDENT and ready is None:
        gdc_launch_dependents()
    if WEIGHT.FORMAT != FLOATS and peaks_in is None and not INTERPRETED:
        # The input is read before the loop, and the weights come meanwhile.
        prefetch_codes(codes, block_n, split, N, WEIGHT, BLOCK_U, BLOCK_N, STEPS)
    if WEIGHT.FORMAT == FLOATS:
        total, squares = float_sums(
            x, norm, ready, codes, block_n, split, M, N,
            K, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
        )  # fmt: skip
    elif WEIGHT.DYNAMIC:
        sums, squares, largest = int8_sums(
            x, norm, peaks_in, ready, codes, block_n, split, M, N,
            WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
        )  # fmt: skip
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        scales = tl.load(scale + n, mask=n < N, other=0.0)
        total = sums.to(tl.float32) * scales * (largest * (1.0 / 127.0))[:, None]
    elif not (WEIGHT.TILED and x.dtype.element_ty.primitive_bitwidth == 16):
        if DEPENDENT:
            wait_for_input(ready, 0)
        if WEIGHT.FORMAT == SPARSE:
            total, squares = sparse_sums(
                x, norm, codes, scale, block_n, split, M, N,
                WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
            )  # fmt: skip
        else:
            total, squares = code_sums(
                x, norm, codes, scale, zero, block_n, split, M, N,
                WEIGHT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
            )  # fmt: skip
    elif WEIGHT.FORMAT == SPARSE:
        total, squares = digit_sums(
            x, norm, peaks_in, ready, codes, scale, block_n, split, M, N,
            WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
        )  # fmt: skip
    else:
        total, squares = tile_sums(
            x, norm, peaks_in, ready, codes, scale, zero, block_n, split, M, N,
            WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
        )  # fmt: skip
    return total, squares


@triton.jit
def normalized(total, squares, EPS, K, norm):
    """`total` (TOKENS, n) times the norm's factor, from the sums of squares."""
    if norm is not None:
        total *= tl.rsqrt(squares / K + EPS)
    return total
