"""Triton kernel of `decode_attention`: split-KV attention of one query a sequence.

    y[g] = sum over n of p[g, n] v[n] / sum over n of p[g, n]
    p[g, n] = exp(q[g] k[n] / sqrt(D))

A program takes all G query heads of one head of the cache and one stretch of the filled
positions, dequantizes codes in registers (k = c s: s multiplies the score; v = c s: the
probability), and keeps a running maximum in float32 (Milakov and Gimelshein, "Online
normalizer calculation for softmax", 2018). The last program of a head to finish joins
the parts (Dao et al., "Flash-Decoding", 2023). The grid depends on what is allocated;
which programs have work, and how much, on the length read from the device, so that one
captured graph serves every position.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from llama_perf.kernels.triton.launch import (
    last_to_arrive,
    load_part,
    prefetch,
    wait_for_input,
)
from llama_perf.kernels.triton.peaks import largest_bits, raise_peak

UNQUANTIZED = tl.constexpr(0)
INT8 = tl.constexpr(1)
FP8 = tl.constexpr(2)


@triton.jit
def cached_values(place, mask, KIND, DTYPE):
    """Values of the cache, or codes as values: of fp8 ones / 256."""
    if KIND == FP8:
        bits = tl.load(place, mask=mask, other=0).to(tl.int8, bitcast=True)
        # The sign stands in bit 14 too once the byte is widened with it.
        bits = (bits.to(tl.int16) << 7) & -0x4001
        values = bits.to(tl.float16, bitcast=True).to(DTYPE)
    elif KIND == INT8:
        values = tl.load(place, mask=mask, other=0).to(DTYPE)
    else:
        values = tl.load(place, mask=mask, other=0.0).to(DTYPE)
    return values


@triton.jit
def attend_in_splits(
    q,
    k_cache, v_cache, k_scale, v_scale, split_counter, filled,
    parts, sums, out, peaks_out, next_weight, S, heads,
    HOW: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`attend_block` of each program. The grid is (heads, SPLITS and some more)."""
    attend_block(
        tl.program_id(0), tl.program_id(1), heads, tl.num_programs(1),
        None, q, k_cache, v_cache, k_scale, v_scale, split_counter, filled,
        parts, sums, out, peaks_out, next_weight, S, HOW, DEPENDENT,
    )  # fmt: skip


@triton.jit
def attend_block(
    head, split, heads, splits,
    ready, q, k_cache, v_cache, k_scale, v_scale, split_counter, filled,
    parts, sums, out, peaks_out, next_weight, S, HOW, DEPENDENT,
):  # fmt: skip
    """Queries (B, HEADS, GROUP, D) over caches (B, HEADS, S, D) to out.

    HOW is `launch_attention.Attention`. Of one of `heads` = B * HEADS, one of `splits`
    >= SPLITS stretches. The last WINDOW positions are visible, all if that is 0.
    `filled` is int64 (B,), or (1,) unless RAGGED; `parts` are float32 (B * HEADS,
    SPLITS, GROUP, D), `sums` (2, B * HEADS, SPLITS, GROUP). `next_weight` has LINES
    lines of 128 bytes that the next product reads: programs without a stretch bring
    them into the second-level cache. The largest |out| of each sequence goes to
    `peaks_out`, unless that is None: bits of float32, int32 (B,) of zeros. With
    DEPENDENT q is waited for, as `wait_for_input` says; nothing else is that a phase in
    front of this one writes.
    """
    HEADS: tl.constexpr = HOW.HEADS
    GROUP: tl.constexpr = HOW.GROUP
    D: tl.constexpr = HOW.D
    KIND: tl.constexpr = HOW.KIND
    DTYPE: tl.constexpr = HOW.DTYPE
    SCALE: tl.constexpr = HOW.SCALE
    V_SCALE: tl.constexpr = HOW.V_SCALE
    ROWS: tl.constexpr = HOW.ROWS
    GROUP_ROWS: tl.constexpr = HOW.GROUP_ROWS
    BLOCK: tl.constexpr = HOW.BLOCK
    BLOCK_D: tl.constexpr = HOW.BLOCK_D
    SPLITS: tl.constexpr = HOW.SPLITS
    STEPS: tl.constexpr = HOW.STEPS
    STAGES: tl.constexpr = HOW.STAGES
    TOGETHER: tl.constexpr = HOW.TOGETHER
    LINES: tl.constexpr = HOW.LINES
    RAGGED: tl.constexpr = HOW.RAGGED
    WINDOW: tl.constexpr = HOW.WINDOW
    if DEPENDENT and ready is None:
        gdc_launch_dependents()
        wait_for_input(ready, 0)
    sequence = head // HEADS if RAGGED else 0
    length = tl.load(filled + sequence).to(tl.int32)
    blocks = (length + BLOCK - 1) // BLOCK
    if WINDOW > 0:
        # Of the blocks those in front of the window are left out.
        start = tl.maximum(length - WINDOW, 0)
        start_block = start // BLOCK
        blocks -= start_block
    blocks_per_split = (blocks + SPLITS - 1) // SPLITS
    active = (blocks + blocks_per_split - 1) // blocks_per_split
    if LINES > 0 and split >= active:
        spare = splits - active
        idle = heads * spare
        start = head * spare + split - active
        for chunk in range(start, (LINES + 127) // 128, idle):
            line = tl.minimum(chunk * 128 + tl.arange(0, 128), LINES - 1)
            prefetch(next_weight + line.to(tl.int64) * 32)
    if split < active:
        if DEPENDENT and ready is not None:
            wait_for_input(ready, 0)
        d = tl.arange(0, BLOCK_D)[None, :]
        row = tl.arange(0, ROWS)[:, None]
        in_group = (row < GROUP) & (d < D)
        query = tl.load(q + head * GROUP * D + row * D + d, mask=in_group, other=0.0)
        query = query.to(DTYPE)
        first = split * blocks_per_split
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
        cache = head.to(tl.int64) * S
        steps = tl.minimum(blocks_per_split, blocks - first)
        for step in tl.range(STEPS if STEPS > 0 else steps, num_stages=STAGES):
            n = (first + step) * BLOCK + tl.arange(0, BLOCK)
            if WINDOW > 0:
                n += start_block * BLOCK
            inside = (n < length) & (step < steps)
            if WINDOW > 0:
                inside &= n >= start
            mask = inside[:, None] & (d < D)
            place = (cache + n)[:, None] * D + d
            k = cached_values(k_cache + place, mask, KIND, DTYPE)
            v = cached_values(v_cache + place, mask, KIND, DTYPE)
            if ROWS == 1:
                score = tl.sum(query[:, None, :] * k[None, :, :], axis=2)
            else:
                score = tl.dot(query, tl.trans(k), input_precision="ieee")
            score = score * SCALE
            if KIND != UNQUANTIZED:
                s = tl.load(k_scale + cache + n, mask=inside, other=0.0)
                score = score * s.to(tl.float32)[None, :]
            score = tl.where(inside[None, :], score, float("-inf"))
            new_top = tl.maximum(top, tl.max(score, axis=1))
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(score - new_top[:, None])
            total = total * shrink + tl.sum(p, axis=1)
            acc = acc * shrink[:, None]
            if KIND != UNQUANTIZED:
                s = tl.load(v_scale + cache + n, mask=inside, other=0.0)
                p = p * s.to(tl.float32)[None, :]
            if ROWS == 1:
                acc += tl.sum(p[:, :, None] * v[None, :, :], axis=1)
            else:
                acc = tl.dot(p.to(DTYPE), v, acc, input_precision="ieee")
            top = new_top
        acc = acc * V_SCALE
        if active == 1:
            value = acc / total[:, None]
            value = value.to(out.dtype.element_ty)
            tl.store(out + head * GROUP * D + row * D + d, value, mask=in_group)
            if peaks_out is not None:
                write_head_peak(value, peaks_out + head // HEADS, in_group)
        else:
            part = head.to(tl.int64) * SPLITS + split
            tl.store(parts + part * (GROUP * D) + row * D + d, acc, mask=in_group)
            r = tl.arange(0, ROWS)
            place = sums + part * GROUP + r
            tl.store(place, top, mask=r < GROUP)
            place += tl.cast(heads, tl.int64) * (SPLITS * GROUP)
            tl.store(place, total, mask=r < GROUP)
            if last_to_arrive(split_counter + head, active):
                join_parts(
                    parts, sums,
                    out, peaks_out, head, heads, active,
                    HEADS, GROUP, D, GROUP_ROWS, BLOCK_D, SPLITS, TOGETHER,
                )  # fmt: skip


@triton.jit
def write_head_peak(values, place, mask):
    """The largest of |values| of a head, (ROWS, D), at `place` where it is larger."""
    size = tl.where(mask, tl.abs(values.to(tl.float32)), 0.0)
    raise_peak(place, largest_bits(size))


@triton.jit
def join_parts(
    parts, sums, out, peaks_out, head, heads, active,
    HEADS, GROUP, D, ROWS, BLOCK_D, SPLITS, TOGETHER,
):  # fmt: skip
    """The first `active` parts of a head into its rows of `out`.

    Of one of `heads`. Their peak goes to `peaks_out`, unless that is None.
    """
    row = tl.arange(0, ROWS)[None, :]
    d = tl.arange(0, BLOCK_D)[None, None, :]
    base = head.to(tl.int64) * SPLITS
    totals = sums + tl.cast(heads, tl.int64) * (SPLITS * GROUP)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, SPLITS, TOGETHER):
        split = (start + tl.arange(0, TOGETHER))[:, None]
        mask = (split < active) & (row < GROUP)
        place = (base + split) * GROUP + row
        tops = load_part(sums + place, mask, float("-inf"))
        part_total = load_part(totals + place, mask)
        here = mask[:, :, None] & (d < D)
        part = load_part(parts + place[:, :, None] * D + d, here)
        new_top = tl.maximum(top, tl.max(tops, axis=0))
        # Rows beyond the group have no part at all, and a total of 0.
        known = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - known)
        weight = tl.exp2(tops - known[None, :])
        total = total * shrink + tl.sum(weight * part_total, axis=0)
        acc = acc * shrink[:, None] + tl.sum(weight[:, :, None] * part, axis=0)
        top = new_top
    r = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    value = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    place = out + head * GROUP * D + r * D + column
    stored, inside = value.to(out.dtype.element_ty), (r < GROUP) & (column < D)
    tl.store(place, stored, mask=inside)
    if peaks_out is not None:
        write_head_peak(stored, peaks_out + head // HEADS, inside)
