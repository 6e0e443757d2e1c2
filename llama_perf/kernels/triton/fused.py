"""Triton kernels of a fused layer: a product, the norm before it, the work behind it.

    project        out = f(norm(x) W^T), f: as it is, plus a residual, or
                   silu(norm(x) W1^T) * (norm(x) W3^T)
    project_heads  q, k, v = norm(x) W^T, with a bias where there is one; q and k
                   normalized by head where they are, and rotated by their position; k
                   and v written into the cache, quantized where that is

A program sums a block of rows over a stretch of columns. Of a group of rows (a block,
or a head) the last program to arrive adds the parts in their order, so the result does
not depend on which it was, and does the rest: no second kernel, and no product is
written but the partial sums. With DEPENDENT a kernel may start before the one in front
of it ends (programmatic dependent launch): it asks for its first weights and then waits
for its input.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.attention import INT8, UNQUANTIZED
from llama_perf.kernels.triton.block_sums import block_sums, normalized
from llama_perf.kernels.triton.launch import last_to_arrive, load_part
from llama_perf.kernels.triton.peaks import largest_bits, raise_peak
from llama_perf.kernels.triton.sums import rounded

# WHAT is done with a product.
KEEP = tl.constexpr(0)
ADD = tl.constexpr(1)
GATE = tl.constexpr(2)


@triton.jit
def project(
    x, norm, codes, scale, zero, codes2, scale2, zero2,
    out, peaks_in, peaks_out, cleared_peaks, next_norm,
    parts, squares, split_counter, EPS, M, N,
    WEIGHT: tl.constexpr, WHAT: tl.constexpr, CLEARED_PEAKS: tl.constexpr,
    DEPENDENT: tl.constexpr, TOKENS: tl.constexpr, BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """`project_block` of each program. The grid is (blocks of both weights, SPLITS)."""
    project_block(
        tl.program_id(0), tl.program_id(1), None,
        x, norm, codes, scale, zero, codes2, scale2, zero2,
        out, peaks_in, peaks_out, cleared_peaks, next_norm,
        parts, squares, split_counter, EPS, M, N,
        WEIGHT, WHAT, CLEARED_PEAKS, DEPENDENT,
        TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES, SPLITS,
    )  # fmt: skip


@triton.jit
def project_block(
    block, split, ready,
    x, norm, codes, scale, zero, codes2, scale2, zero2,
    out, peaks_in, peaks_out, cleared_peaks, next_norm,
    parts, squares, split_counter, EPS, M, N,
    WEIGHT, WHAT, CLEARED_PEAKS, DEPENDENT,
    TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES, SPLITS,
):  # fmt: skip
    """`x` (M, K) by a block of a weight of N rows into its columns of `out` (M, N).

    With GATE by two weights, the blocks of the second one behind those of the first.
    With ADD `out` holds the residual. `parts` are float32 (SPLITS, 1 or 2, M, N),
    `squares` (SPLITS, 1 or 2, M, blocks), `split_counter` int32 (blocks,) of zeros.

    Peaks are as `launch_fused.Peaks` has them: of x at `peaks_in`, of `out`, times
    `next_norm` with ADD, at `peaks_out`. The first CLEARED_PEAKS numbers at
    `cleared_peaks` become 0. What is None is left out; so is the norm of x. `ready` is
    as in `wait_for_input`.
    """
    PARTS: tl.constexpr = 2 if WHAT == GATE else 1
    blocks = (N + BLOCK_N - 1) // BLOCK_N
    block_n, part = block % blocks, block // blocks
    if part == 1:
        codes, scale, zero = codes2, scale2, zero2
    total, square = block_sums(
        x, norm, peaks_in, ready, codes, scale, zero, block_n, split, M, N,
        WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
    )  # fmt: skip
    if CLEARED_PEAKS and block + split == 0:
        tl.store(cleared_peaks + tl.arange(0, CLEARED_PEAKS), 0)
    m = tl.arange(0, TOKENS)[:, None]
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = (m < M) & (n < N)
    if PARTS * SPLITS == 1:
        total = normalized(total, square, EPS, WEIGHT.K, norm)
        total = finish(total, total, out + m * N + n, mask, WHAT)
        if peaks_out is not None:
            write_peak(total, peaks_out, next_norm, m, n, M, N, WHAT)
    else:
        stored = (split * PARTS + part) * M + m
        tl.store(parts + stored * N + n, total, mask=mask)
        if norm is not None:
            tl.store(squares + stored * blocks + block_n, square, mask=m < M)
        if last_to_arrive(split_counter + block_n, PARTS * SPLITS):
            first = tl.zeros((TOKENS, BLOCK_N), tl.float32)
            second = tl.zeros((TOKENS, BLOCK_N), tl.float32)
            square = tl.zeros((TOKENS, 1), tl.float32)
            for index in tl.static_range(SPLITS):
                row = index * PARTS * M + m
                first += load_part(parts + row * N + n, mask)
                if WHAT == GATE:
                    second += load_part(parts + (row + M) * N + n, mask)
                if norm is not None:
                    square += load_part(squares + row * blocks + block_n, m < M)
            first = normalized(first, square, EPS, WEIGHT.K, norm)
            second = normalized(second, square, EPS, WEIGHT.K, norm)
            first = finish(first, second, out + m * N + n, mask, WHAT)
            if peaks_out is not None:
                write_peak(first, peaks_out, next_norm, m, n, M, N, WHAT)


@triton.jit
def finish(first, second, place, mask, WHAT):
    """Store a product, or a function of two, as WHAT says; returns what it stored."""
    if WHAT == ADD:
        first += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if WHAT == GATE:
        first = first * tl.sigmoid(first) * second
    stored = first.to(place.dtype.element_ty)
    tl.store(place, stored, mask=mask)
    return stored


@triton.jit
def write_peak(values, peaks_out, norm, m, n, M, N, WHAT):
    """The largest of |values|, (TOKENS, BLOCK_N), at `peaks_out` where it is larger."""
    size = values.to(tl.float32)
    if WHAT == ADD:
        # The next product normalizes this result.
        size *= tl.load(norm + n, mask=n < N, other=0.0).to(tl.float32)
    size = tl.where((m < M) & (n < N), tl.abs(size), 0.0)
    raise_peak(peaks_out + m, largest_bits(size, 1, True), m < M)


@triton.jit
def rotated(values, cos, sin, TOKENS, BLOCK_D):
    """Pairs (2i, 2i + 1) of (TOKENS, BLOCK_D) by angles (TOKENS, BLOCK_D / 2)."""
    even, odd = tl.split(tl.reshape(values, (TOKENS, BLOCK_D // 2, 2)))
    both = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    return tl.reshape(both, (TOKENS, BLOCK_D))


@triton.jit
def quantized_head(values, KIND):
    """Codes of (TOKENS, BLOCK_D) and scales (TOKENS,) in float32: see `cache_codes`."""
    LARGEST: tl.constexpr = 127.0 if KIND == INT8 else 448.0
    scale = tl.div_rn(tl.max(tl.abs(values), axis=1), LARGEST)
    scale = tl.maximum(scale, 1.1754943508222875e-38)
    # Rounded up to a bfloat16.
    bits = (scale.to(tl.int32, bitcast=True) + 0xFFFF) & -0x10000
    scale = bits.to(tl.float32, bitcast=True)
    code = tl.div_rn(values, tl.zeros_like(values) + scale[:, None])
    if KIND == INT8:
        codes = rounded(code).to(tl.int8)
    else:
        # To the nearest of 3 mantissa bits; below 2**-6 in multiples of 2**-9.
        bits = code.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        small = rounded(tl.abs(code) * 512.0).to(tl.int32)
        size = tl.where(tl.abs(code) < 0.015625, small, normal)
        codes = (size | ((bits >> 24) & 0x80)).to(tl.uint8)
    return codes, scale


@triton.jit
def project_heads(
    x, norm, codes, scale, zero, bias, q_norm, k_norm, cos, sin, positions, q,
    k_cache, v_cache, k_scale, v_scale, peaks_in,
    parts, squares, split_counter, EPS, M, N, S, LENGTH,
    WEIGHT: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, KIND: tl.constexpr, RAGGED: tl.constexpr,
    DEPENDENT: tl.constexpr, TOKENS: tl.constexpr, BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """`heads_block` of each program. The grid is (blocks, SPLITS)."""
    heads_block(
        tl.program_id(0), tl.program_id(1), None,
        x, norm, codes, scale, zero, bias, q_norm, k_norm, cos, sin, positions, q,
        k_cache, v_cache, k_scale, v_scale, peaks_in,
        parts, squares, split_counter, EPS, M, N, S, LENGTH,
        WEIGHT, HEADS, KV_HEADS, D, BLOCK_D, KIND, RAGGED, DEPENDENT,
        TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES, SPLITS,
    )  # fmt: skip


@triton.jit
def heads_block(
    block_n, split, ready,
    x, norm, codes, scale, zero, bias, q_norm, k_norm, cos, sin, positions, q,
    k_cache, v_cache, k_scale, v_scale, peaks_in,
    parts, squares, split_counter, EPS, M, N, S, LENGTH,
    WEIGHT, HEADS, KV_HEADS, D, BLOCK_D, KIND, RAGGED, DEPENDENT,
    TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES, SPLITS,
):  # fmt: skip
    """`x` (M, K), LENGTH tokens a sequence, to `q` (M, HEADS, D) and to the cache.

    For a block of the weight's N rows. Caches are (B, KV_HEADS, S, D), scales (B,
    KV_HEADS, S); token m stands at positions[m % LENGTH], or with RAGGED at
    positions[m], and is rotated by that row of `cos` and `sin`, float32 (..., D / 2).
    `parts` are float32 (SPLITS, M, N), `squares` (SPLITS, M, blocks), `split_counter`
    int32 (heads of all three,) of zeros. D is a multiple of BLOCK_N. `bias` is (N,),
    `q_norm` and `k_norm` are (D,); what is None is left out. `peaks_in` and `ready` are
    as in `project_block`.
    """
    BLOCKS_PER_HEAD: tl.constexpr = D // BLOCK_N
    total, square = block_sums(
        x, norm, peaks_in, ready, codes, scale, zero, block_n, split, M, N,
        WEIGHT, DEPENDENT, TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES,
    )  # fmt: skip
    m = tl.arange(0, TOKENS)[:, None]
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    blocks = N // BLOCK_N
    stored = split * M + m
    tl.store(parts + stored * N + n, total, mask=m < M)
    tl.store(squares + stored * blocks + block_n, square, mask=m < M)
    head = block_n // BLOCKS_PER_HEAD
    if last_to_arrive(split_counter + head, BLOCKS_PER_HEAD * SPLITS):
        d = tl.arange(0, BLOCK_D)[None, :]
        mask = (m < M) & (d < D)
        values = tl.zeros((TOKENS, BLOCK_D), tl.float32)
        square = tl.zeros((TOKENS, 1), tl.float32)
        for index in tl.static_range(SPLITS):
            row = index * M + m
            values += load_part(parts + row * N + head * D + d, mask)
            square += load_part(squares + row * blocks + head * BLOCKS_PER_HEAD, m < M)
        values = normalized(values, square, EPS, WEIGHT.K, norm)
        if bias is not None:
            values += tl.load(bias + head * D + d, mask=d < D, other=0.0).to(tl.float32)
        at = m if RAGGED else m % LENGTH
        if head < HEADS + KV_HEADS:
            if q_norm is not None:
                weight = q_norm
                if head >= HEADS:
                    weight = k_norm
                square = tl.sum(values * values, axis=1, keep_dims=True)
                values = normalized(values, square, EPS, D, weight)
                values *= tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
            half = tl.arange(0, BLOCK_D // 2)[None, :]
            inside = (m < M) & (half < D // 2)
            place = at * (D // 2) + half
            c = tl.load(cos + place, mask=inside, other=0.0)
            s = tl.load(sin + place, mask=inside, other=0.0)
            values = rotated(values, c, s, TOKENS, BLOCK_D)
        # A quantized cache quantizes the values as an unquantized one would store them.
        values = values.to(q.dtype.element_ty)
        if head < HEADS:
            tl.store(q + m * (HEADS * D) + head * D + d, values, mask=mask)
        else:
            position = tl.load(positions + at, mask=m < M, other=0)
            kv_head = (head - HEADS) % KV_HEADS
            cache_row = ((m // LENGTH) * KV_HEADS + kv_head).to(tl.int64) * S + position
            cache, scales = k_cache, k_scale
            if head >= HEADS + KV_HEADS:
                cache, scales = v_cache, v_scale
            if KIND != UNQUANTIZED:
                head_codes, head_scale = quantized_head(values.to(tl.float32), KIND)
                tl.store(cache + cache_row * D + d, head_codes, mask=mask)
                head_scale = head_scale[:, None].to(scales.dtype.element_ty)
                tl.store(scales + cache_row, head_scale, mask=m < M)
            else:
                tl.store(cache + cache_row * D + d, values, mask=mask)
