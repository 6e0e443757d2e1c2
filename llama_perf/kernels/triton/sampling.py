"""Triton kernels around a step's layers: what it starts from, and the next token.

    start   a token's row of the embedding, its position's cosines and sines
    choose  the next token of each sequence; moves on all that the next step reads

The draw is an exponential race (argmax of p / e with e from Exp(1) is a draw from p),
in logarithms. A program takes a stretch of the vocabulary, finds its own SLOTS largest
logits by bisecting their bits, and hands on those with their race results. The last
program to finish joins them. A token is allowed where fewer than TOP logits are
greater. So the joined ones need no order: the winner of the race is taken if it is
allowed. If not, no smaller one is allowed, and the race goes on among the greater ones.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llama_perf.kernels.triton.launch import last_to_arrive, load_part
from llama_perf.kernels.triton.peaks import largest_bits


@triton.jit
def start(
    tokens, positions, embedding, frequencies, norm_weight, x, cos, sin, filled,
    peaks_out, ROWS,
    D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows of `embedding` (V, D) of int64 `tokens` (M,) to `x` (M, D).

    Of int64 `positions` (ROWS,), at most as many, `cos` and `sin`, float32 (ROWS,
    HALF), and in `filled` how many positions each sees. The grid is (M, blocks of D).
    The largest |x * norm_weight| of each token goes to `peaks_out`, unless that is
    None: bits of float32, int32 (8,). Then there is one block.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    m, block = tl.program_id(0), tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(tokens + m) * D + column
    row = tl.load(embedding + place, mask=column < D, other=0.0)
    tl.store(x + m * D + column, row, mask=column < D)
    if peaks_out is not None:
        size = row.to(tl.float32)
        size *= tl.load(norm_weight + column, mask=column < D, other=0.0).to(tl.float32)
        # Not raised: an earlier token's may be there.
        tl.store(peaks_out + m, largest_bits(tl.abs(size)))
    if (block == 0) & (m < ROWS):
        position = tl.load(positions + m)
        half = tl.arange(0, BLOCK_H)
        inside = half < HALF
        angle = tl.load(frequencies + half, mask=inside, other=0.0)
        angle *= position.to(tl.float32)
        tl.store(cos + m * HALF + half, tl.cos(angle), mask=inside)
        tl.store(sin + m * HALF + half, tl.sin(angle), mask=inside)
        tl.store(filled + m, position + 1)


@triton.jit
def exponential(seed, stretch, sequence, count, BLOCK):
    """BLOCK draws from Exp(1), finite and above 0, of Philox at that counter."""
    lane = tl.arange(0, BLOCK // 4)
    none = lane * 0
    a, b, c, d = tl.philox(
        seed, stretch * (BLOCK // 4) + lane, none + sequence, none + count, none
    )
    bits = tl.join(tl.join(a, b), tl.join(c, d)).reshape((BLOCK,))
    # In (0, 1): 31 bits and a half of the last.
    u = (bits >> 1).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    u = tl.minimum(u, 0.99999994)
    # 1 - u has no more than 24 bits: where u is small, which is what wins, by series.
    series = u * (1.0 + u * (0.5 + u * 0.33333334))
    return tl.where(u < 0.01, series, -tl.log(1.0 - u))


@triton.jit
def ordered(value, SHIFT):
    """An int32 in the order of float32 `value`, whose lowest SHIFT bits are 0."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def nth_largest(key, SLOTS, SHIFT):
    """The SLOTS-th largest of `key`."""
    LOWEST: tl.constexpr = -(2 ** (31 - SHIFT))
    bound = tl.where(tl.sum((key >= 0).to(tl.int32)) >= SLOTS, 0, LOWEST)
    for BIT in tl.static_range(31 - SHIFT):
        more = bound + (1 << (30 - SHIFT - BIT))
        bound = tl.where(tl.sum((key >= more).to(tl.int32)) >= SLOTS, more, bound)
    return bound


@triton.jit
def choose(
    logits, token, position, history, count, seed, scores, values, columns,
    split_counter, INVERSE, V, S, TOP,
    GREEDY: tl.constexpr, SELECT: tl.constexpr, BATCH: tl.constexpr,
    RAGGED: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, JOINED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """From `logits` (BATCH, V) the next int64 `token` (BATCH, 1).

    It is written to int64 `history` (BATCH, S) at `count`, int64 (1,), which moves on,
    as does `position`, int64 (1,), or (BATCH, 1) with RAGGED. INVERSE is 1 /
    temperature. With SELECT the draw is among the TOP best and those like the last, and
    SLOTS is TOP, at most BLOCK; else it is among all, and SLOTS is 1. `seed` is int64
    (1,); `scores`, `values`, float32, and `columns`, int32, are (BATCH, PARTS, SLOTS);
    `split_counter` int32 (BATCH + 1,) of zeros. The grid is (PARTS, BATCH).
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    part, sequence = tl.program_id(0), tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < V
    row = sequence.to(tl.int64) * V
    value = tl.load(logits + row + column, mask=inside, other=float("-inf"))
    value = value.to(tl.float32)
    # NaN is never drawn.
    value = tl.where(value == value, value, float("-inf"))
    number = tl.load(count)
    if GREEDY:
        score = value
    else:
        drawn = exponential(tl.load(seed), part, sequence, number.to(tl.int32), BLOCK)
        score = value * INVERSE - tl.log(drawn)
    base = (sequence * PARTS + part) * SLOTS
    tied = inside
    slot = 0
    if SELECT:
        key = ordered(value, SHIFT)
        smallest = nth_largest(key, SLOTS, SHIFT)
        above = key > smallest
        tied = key == smallest
        # All alike are allowed or none is: one of them stands for them, and their
        # value fills the slots that are left.
        alike = tl.max(tl.where(tied, value, float("-inf")))
        place = base + tl.cumsum(above.to(tl.int32)) - 1
        tl.store(scores + place, score, mask=above)
        tl.store(values + place, value, mask=above)
        tl.store(columns + place, column, mask=above)
        slot = tl.sum(above.to(tl.int32))
        FILL: tl.constexpr = triton.next_power_of_2(SLOTS)
        slots = tl.arange(0, FILL)
        unused = (slots > slot) & (slots < SLOTS)
        tl.store(scores + base + slots, float("-inf"), mask=unused)
        tl.store(values + base + slots, alike, mask=unused)
        tl.store(values + base + slot, alike)
    best, where = tl.max(
        tl.where(tied, score, float("-inf")), axis=0, return_indices=True
    )
    tl.store(scores + base + slot, best)
    tl.store(columns + base + slot, part * BLOCK + where)
    if last_to_arrive(split_counter + sequence, PARTS):
        entry = tl.arange(0, JOINED)
        there = entry < PARTS * SLOTS
        first = sequence * (PARTS * SLOTS)
        race = load_part(scores + first + entry, there, float("-inf"))
        winner = tl.argmax(race, axis=0)
        if SELECT:
            size = load_part(values + first + entry, there, float("-inf"))
            bound = float("-inf")
            running = True
            while running:
                winner = tl.argmax(race, axis=0)
                its = tl.max(tl.where(entry == winner, size, float("-inf")))
                greater = size > its
                race = tl.where(greater, race, float("-inf"))
                # Without the second it might not end where all that race are -inf.
                refused = tl.sum(greater.to(tl.int32)) >= TOP
                running = refused & (its > bound)
                bound = its
        chosen = tl.load(columns + first + winner, cache_modifier=".cg")
        chosen = tl.minimum(chosen, V - 1).to(tl.int64)
        tl.store(token + sequence, chosen)
        tl.store(history + sequence.to(tl.int64) * S + number, chosen)
        if RAGGED:
            tl.store(position + sequence, tl.load(position + sequence) + 1)
        last = True
        if BATCH > 1:
            last = last_to_arrive(split_counter + BATCH, BATCH)
        if last:
            tl.store(count, number + 1)
            if not RAGGED:
                tl.store(position, tl.load(position) + 1)
