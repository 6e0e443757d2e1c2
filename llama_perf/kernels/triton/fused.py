"""Triton kernels of a fused layer: a product with what stands before and behind it.

    project        out = f(norm(x) W^T), f: as it is, plus a residual, or
                   silu(norm(x) W1^T) * (norm(x) W3^T)
    project_heads  q, k, v = norm(x) W^T; q and k turned by their position, k and v
                   written into the cache, quantized where that is

A program sums a block of rows over a stretch of columns. Of a group of rows (a block,
or a head) the last program to arrive adds the parts in their order, so the result does
not depend on which it was, and does the rest: no second kernel, and no product is
written but the partial sums. With DEPENDENT a kernel may start before the one in front
of it ends (programmatic dependent launch): it asks for its first weights and then waits
for its input.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llama_perf.kernels import weight as packed
from llama_perf.kernels.triton.attention import INT8
from llama_perf.kernels.triton.attention import PLAIN as UNQUANTIZED
from llama_perf.kernels.triton.dependent_launch import prefetch, raise_peak
from llama_perf.kernels.triton.plain import plain_sums
from llama_perf.kernels.triton.sparse import sparse_sums
from llama_perf.kernels.triton.sums import code_sums, rounded

# What a weight is.
PLAIN = tl.constexpr(packed.PLAIN)
SPARSE = tl.constexpr(packed.SPARSE)
# What is done with a product.
KEEP = tl.constexpr(0)
ADD = tl.constexpr(1)
GATE = tl.constexpr(2)


@triton.jit
def early(
    codes,
    block_n,
    split,
    N,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Ask for the first weights, let the next kernel start, and wait for the input."""
    if FORMAT == PLAIN:
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
def token_peak(
    x,
    gain,
    peak,
    M,
    K: tl.constexpr,
    NORM: tl.constexpr,
    PEAKED: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The largest |x * g| of each token, (TOKENS,); such that it / 127 is normal.

    With PEAKED the kernel in front has left it at `peak`.
    """
    LEAST: tl.constexpr = 1.5e-36
    if PEAKED:
        m = tl.arange(0, TOKENS)
        left = tl.load(peak + m, mask=m < M, other=0).to(tl.float32, bitcast=True)
        return tl.maximum(left, LEAST)
    # As much at once as its registers hold: each round waits for memory.
    BLOCK: tl.constexpr = 4096 // TOKENS
    token = tl.arange(0, TOKENS)[:, None]
    peak = tl.full((TOKENS, BLOCK), LEAST, tl.float32)
    for start in range(0, K, BLOCK):
        k = (start + tl.arange(0, BLOCK))[None, :]
        inside = (token < M) & (k < K)
        value = tl.load(x + token * K + k, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            value *= tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(value))
    return tl.max(peak, axis=1)


@triton.jit
def block_sums(
    x,
    gain,
    peak,
    codes,
    scale,
    zero,
    block_n,
    split,
    M,
    N,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    DECODE: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DYNAMIC: tl.constexpr,
    NORM: tl.constexpr,
    PEAKED: tl.constexpr,
    DEPENDENT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sums (TOKENS, BLOCK_N) of any format and those of x**2, (TOKENS, 1).

    With DEPENDENT the program asks for its weights and waits for its input first.
    """
    if DEPENDENT:
        early(
            codes,
            block_n,
            split,
            N,
            K,
            FORMAT,
            WORDS,
            BITS,
            BLOCK_U,
            BLOCK_N,
            STEPS,
        )
    if FORMAT == PLAIN:
        total, squares = plain_sums(
            x,
            gain,
            codes,
            block_n,
            split,
            M,
            N,
            K,
            NORM,
            TOKENS,
            BLOCK_U,
            BLOCK_N,
            STEPS,
        )
    elif FORMAT == SPARSE:
        total, squares = sparse_sums(
            x,
            gain,
            codes,
            scale,
            block_n,
            split,
            M,
            N,
            K,
            WORDS,
            NORM,
            TOKENS,
            BLOCK_U,
            BLOCK_N,
            STEPS,
        )
    else:
        inverse = 0.0
        if DYNAMIC:
            largest = token_peak(x, gain, peak, M, K, NORM, PEAKED, TOKENS)
            inverse = (127.0 / largest)[:, None, None]
        total, squares = code_sums(
            x,
            gain,
            inverse,
            codes,
            scale,
            zero,
            block_n,
            split,
            M,
            N,
            K,
            WORDS,
            BITS,
            DECODE,
            GROUP,
            ZERO,
            NORM,
            DYNAMIC,
            TOKENS,
            BLOCK_U,
            BLOCK_N,
            STEPS,
        )
        if DYNAMIC:
            total *= (largest * (1.0 / 127.0))[:, None]
    return total, squares


@triton.jit
def last_to_arrive(counter, count):
    """Whether all `count` programs of a group have stored their parts.

    The one that is told so resets the counter for the next launch.
    """
    # All threads have stored before one of them says so.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == count - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def kept(place, mask):
    """A part that another program stored: not by way of the first-level cache."""
    return tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def normed(total, squares, EPS, K: tl.constexpr, NORM: tl.constexpr):
    """`total` (TOKENS, n) times the norm's factor, from the sums of squares."""
    if NORM:
        total *= tl.rsqrt(squares / K + EPS)
    return total


@triton.jit
def project(
    x,
    gain,
    codes,
    scale,
    zero,
    codes2,
    scale2,
    zero2,
    out,
    peak,
    left,
    cleared,
    next_gain,
    parts,
    squares,
    arrivals,
    EPS,
    M,
    N,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    DECODE: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DYNAMIC: tl.constexpr,
    NORM: tl.constexpr,
    WHAT: tl.constexpr,
    PEAKED: tl.constexpr,
    LEAVES: tl.constexpr,
    CLEARS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """`x` (M, K) by a weight of N rows, or by two with GATE, into `out` (M, N).

    With ADD `out` holds the residual. `parts` are float32 (SPLITS, 1 or 2, M, N),
    `squares` (SPLITS, 1 or 2, M, blocks), `arrivals` int32 (blocks,) of zeros. The grid
    is (blocks of both weights, SPLITS).

    Peaks of tokens are the bits of float32, int32 (8,): with PEAKED those of x are at
    `peak`; with LEAVES those of `out`, times `next_gain` where ADD, are left at `left`,
    which held zeros; as many zeros as CLEARS says are left at `cleared`.
    """
    PARTS: tl.constexpr = 2 if WHAT == GATE else 1
    blocks = (N + BLOCK_N - 1) // BLOCK_N
    block_n, split = tl.program_id(0) % blocks, tl.program_id(1)
    part = tl.program_id(0) // blocks
    if part == 1:
        codes, scale, zero = codes2, scale2, zero2
    total, square = block_sums(
        x,
        gain,
        peak,
        codes,
        scale,
        zero,
        block_n,
        split,
        M,
        N,
        K,
        FORMAT,
        WORDS,
        BITS,
        DECODE,
        GROUP,
        ZERO,
        DYNAMIC,
        NORM,
        PEAKED,
        DEPENDENT,
        TOKENS,
        BLOCK_U,
        BLOCK_N,
        STEPS,
    )
    if CLEARS and tl.program_id(0) + split == 0:
        tl.store(cleared + tl.arange(0, CLEARS), 0)
    m = tl.arange(0, TOKENS)[:, None]
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = (m < M) & (n < N)
    if PARTS * SPLITS == 1:
        total = normed(total, square, EPS, K, NORM)
        total = finish(total, total, out + m * N + n, mask, WHAT)
        if LEAVES:
            leave_peak(total, left, next_gain, m, n, M, N, WHAT)
    else:
        stored = (split * PARTS + part) * M + m
        tl.store(parts + stored * N + n, total, mask=mask)
        if NORM:
            tl.store(squares + stored * blocks + block_n, square, mask=m < M)
        if last_to_arrive(arrivals + block_n, PARTS * SPLITS):
            first = tl.zeros((TOKENS, BLOCK_N), tl.float32)
            second = tl.zeros((TOKENS, BLOCK_N), tl.float32)
            square = tl.zeros((TOKENS, 1), tl.float32)
            for each in tl.static_range(SPLITS):
                row = each * PARTS * M + m
                first += kept(parts + row * N + n, mask)
                if WHAT == GATE:
                    second += kept(parts + (row + M) * N + n, mask)
                if NORM:
                    square += kept(squares + row * blocks + block_n, m < M)
            first = normed(first, square, EPS, K, NORM)
            second = normed(second, square, EPS, K, NORM)
            first = finish(first, second, out + m * N + n, mask, WHAT)
            if LEAVES:
                leave_peak(first, left, next_gain, m, n, M, N, WHAT)


@triton.jit
def finish(first, second, place, mask, WHAT: tl.constexpr):
    """What is done with a product, or with two of them; what is stored."""
    if WHAT == ADD:
        first += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if WHAT == GATE:
        first = first * tl.sigmoid(first) * second
    stored = first.to(place.dtype.element_ty)
    tl.store(place, stored, mask=mask)
    return stored


@triton.jit
def leave_peak(values, left, gain, m, n, M, N, WHAT: tl.constexpr):
    """The largest of |values|, (TOKENS, BLOCK_N), at `left` where it is larger."""
    size = values.to(tl.float32)
    if WHAT == ADD:
        # What is normed next.
        size *= tl.load(gain + n, mask=n < N, other=0.0).to(tl.float32)
    size = tl.where((m < M) & (n < N), tl.abs(size), 0.0)
    raise_peak(left + m, tl.max(size, axis=1, keep_dims=True), m < M)


@triton.jit
def turned(values, cos, sin, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pairs (2i, 2i + 1) of (TOKENS, BLOCK_D) by angles (TOKENS, BLOCK_D / 2)."""
    even, odd = tl.split(tl.reshape(values, (TOKENS, BLOCK_D // 2, 2)))
    both = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    return tl.reshape(both, (TOKENS, BLOCK_D))


@triton.jit
def coded(values, KIND: tl.constexpr):
    """Codes of (TOKENS, BLOCK_D) and scales (TOKENS,) in float32: see `kv_codes`."""
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
    x,
    gain,
    codes,
    scale,
    zero,
    cos,
    sin,
    positions,
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    peak,
    parts,
    squares,
    arrivals,
    EPS,
    M,
    N,
    S,
    LENGTH,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    DECODE: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DYNAMIC: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    RAGGED: tl.constexpr,
    PEAKED: tl.constexpr,
    DEPENDENT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """`x` (M, K), LENGTH tokens a sequence, to `q` (M, HEADS, D) and to the cache.

    Caches are (B, KV_HEADS, S, D), scales (B, KV_HEADS, S); token m stands at
    positions[m % LENGTH], or with RAGGED at positions[m], and is turned by that row of
    `cos` and `sin`, float32 (..., D / 2). `parts` are float32 (SPLITS, M, N), `squares`
    (SPLITS, M, blocks), `arrivals` int32 (heads of all three,) of zeros. D is a
    multiple of BLOCK_N. `peak` is as that of `project`. The grid is (blocks, SPLITS).
    """
    EACH: tl.constexpr = D // BLOCK_N
    block_n, split = tl.program_id(0), tl.program_id(1)
    total, square = block_sums(
        x,
        gain,
        peak,
        codes,
        scale,
        zero,
        block_n,
        split,
        M,
        N,
        K,
        FORMAT,
        WORDS,
        BITS,
        DECODE,
        GROUP,
        ZERO,
        DYNAMIC,
        True,
        PEAKED,
        DEPENDENT,
        TOKENS,
        BLOCK_U,
        BLOCK_N,
        STEPS,
    )
    m = tl.arange(0, TOKENS)[:, None]
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    blocks = N // BLOCK_N
    stored = split * M + m
    tl.store(parts + stored * N + n, total, mask=m < M)
    tl.store(squares + stored * blocks + block_n, square, mask=m < M)
    head = block_n // EACH
    if last_to_arrive(arrivals + head, EACH * SPLITS):
        d = tl.arange(0, BLOCK_D)[None, :]
        mask = (m < M) & (d < D)
        values = tl.zeros((TOKENS, BLOCK_D), tl.float32)
        square = tl.zeros((TOKENS, 1), tl.float32)
        for each in tl.static_range(SPLITS):
            row = each * M + m
            values += kept(parts + row * N + head * D + d, mask)
            square += kept(squares + row * blocks + head * EACH, m < M)
        values = normed(values, square, EPS, K, True)
        at = m if RAGGED else m % LENGTH
        if head < HEADS + KV_HEADS:
            half = tl.arange(0, BLOCK_D // 2)[None, :]
            inside = (m < M) & (half < D // 2)
            place = at * (D // 2) + half
            c = tl.load(cos + place, mask=inside, other=0.0)
            s = tl.load(sin + place, mask=inside, other=0.0)
            values = turned(values, c, s, TOKENS, BLOCK_D)
        # Rounded as it would be kept, which is what a quantized cache quantizes.
        values = values.to(q.dtype.element_ty)
        if head < HEADS:
            tl.store(q + m * (HEADS * D) + head * D + d, values, mask=mask)
        else:
            position = tl.load(positions + at, mask=m < M, other=0)
            of = (head - HEADS) % KV_HEADS
            held_row = ((m // LENGTH) * KV_HEADS + of).to(tl.int64) * S + position
            cache, scales = k_cache, k_scale
            if head >= HEADS + KV_HEADS:
                cache, scales = v_cache, v_scale
            if KIND != UNQUANTIZED:
                held, unit = coded(values.to(tl.float32), KIND)
                tl.store(cache + held_row * D + d, held, mask=mask)
                unit = unit[:, None].to(scales.dtype.element_ty)
                tl.store(scales + held_row, unit, mask=m < M)
            else:
                tl.store(cache + held_row * D + d, values, mask=mask)
