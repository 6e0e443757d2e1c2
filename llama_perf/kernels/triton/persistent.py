"""Triton kernel of all layers of a decode step: one launch that stays on the card.

Each layer has five phases, which are those of `fused.py` and `attention.py`:

    query, key, value; attention; output; gate and up; down

The programs all run at once, take the blocks of a phase in turn, and count themselves
at its end. Before it reads what a phase has written, a program waits until all are
counted. Its first weights of the next phase are on their way by then.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.attention import attend_block
from llama_perf.kernels.triton.fused import ADD, GATE, heads_block, project_block
from llama_perf.kernels.triton.launch import arrive

PHASES = tl.constexpr(5)
ALL = tl.constexpr(-1)
"""The PHASE of a launch that has all of them."""
ADDRESSES = tl.constexpr(22)
"""Of a layer: three norms, five weights of three tensors each, four of the cache."""


@triton.jit
def address(addresses, index, like):
    """A pointer of the type of `like`, to a multiple of 16 bytes."""
    return tl.multiple_of(tl.load(addresses + index).to(like.dtype), 16)


@triton.jit
def weight_at(addresses, index, codes, scale, zero):
    """The three tensors of a weight."""
    own_codes = address(addresses, index, codes)
    own_scale = address(addresses, index + 1, scale)
    return own_codes, own_scale, address(addresses, index + 2, zero)


@triton.jit
def cache_at(addresses, k_cache, k_scale):
    """Keys and values, and their scales."""
    keys, values = address(addresses, 18, k_cache), address(addresses, 19, k_cache)
    scales = address(addresses, 20, k_scale), address(addresses, 21, k_scale)
    return keys, values, scales[0], scales[1]


@triton.jit
def project_phase(
    ready, x, norm, weight, second_weight, out, peaks_in, peaks_out, cleared_peaks,
    next_norm, parts, squares, split_counter, EPS, M,
    TILES, WHAT, CLEARED_PEAKS, WAITING, TOKENS, STAGES,
):  # fmt: skip
    """A product's blocks that are this program's: arguments as of `project_block`."""
    BLOCKS: tl.constexpr = TILES.BLOCKS
    SPLITS: tl.constexpr = TILES.SPLITS
    ROWS: tl.constexpr = TILES.ROWS
    WEIGHT: tl.constexpr = TILES.WEIGHT
    BLOCK_U: tl.constexpr = TILES.BLOCK_U
    BLOCK_N: tl.constexpr = TILES.BLOCK_N
    STEPS: tl.constexpr = TILES.STEPS
    for item in range(tl.program_id(0), BLOCKS * SPLITS, tl.num_programs(0)):
        project_block(
            item % BLOCKS, item // BLOCKS, ready,
            x, norm, weight[0], weight[1], weight[2],
            second_weight[0], second_weight[1], second_weight[2],
            out, peaks_in, peaks_out, cleared_peaks, next_norm,
            parts, squares, split_counter, EPS, M, ROWS,
            WEIGHT, WHAT, CLEARED_PEAKS, WAITING,
            TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES, SPLITS,
        )  # fmt: skip


@triton.jit
def heads_phase(
    ready, x, norm, weight, cos, sin, positions, q, cache, peaks_in,
    parts, squares, split_counter, EPS, M, S,
    TILES, ATTENTION, WAITING, TOKENS, STAGES,
):  # fmt: skip
    """As `project_phase`, by `heads_block`."""
    BLOCKS: tl.constexpr = TILES.BLOCKS
    SPLITS: tl.constexpr = TILES.SPLITS
    ROWS: tl.constexpr = TILES.ROWS
    WEIGHT: tl.constexpr = TILES.WEIGHT
    BLOCK_U: tl.constexpr = TILES.BLOCK_U
    BLOCK_N: tl.constexpr = TILES.BLOCK_N
    STEPS: tl.constexpr = TILES.STEPS
    KV_HEADS: tl.constexpr = ATTENTION.HEADS
    HEADS: tl.constexpr = ATTENTION.HEADS * ATTENTION.GROUP
    D: tl.constexpr = ATTENTION.D
    BLOCK_D: tl.constexpr = ATTENTION.BLOCK_D
    KIND: tl.constexpr = ATTENTION.KIND
    RAGGED: tl.constexpr = ATTENTION.RAGGED
    for item in range(tl.program_id(0), BLOCKS * SPLITS, tl.num_programs(0)):
        heads_block(
            item % BLOCKS, item // BLOCKS, ready,
            x, norm, weight[0], weight[1], weight[2], None, None, None, cos, sin,
            positions, q,
            cache[0], cache[1], cache[2], cache[3], peaks_in,
            parts, squares, split_counter, EPS, M, ROWS, S, 1,
            WEIGHT, HEADS, KV_HEADS, D, BLOCK_D, KIND, RAGGED, WAITING,
            TOKENS, BLOCK_U, BLOCK_N, STEPS, STAGES, SPLITS,
        )  # fmt: skip


@triton.jit
def run_layers(
    addresses, x, q, attended, gated, cos, sin, positions, filled, peaks,
    parts, squares, sums, split_counter, arrivals,
    codes, scale, zero, norm, k_cache, k_scale, EPS, M, S, heads, first, last, LAYERS,
    HEADS: tl.constexpr, OUTPUT: tl.constexpr, GATED: tl.constexpr, DOWN: tl.constexpr,
    ATTENTION: tl.constexpr, STRETCHES: tl.constexpr, TOKENS: tl.constexpr,
    STAGES: tl.constexpr, ROUNDED: tl.constexpr, PHASE: tl.constexpr,
    WAITING: tl.constexpr,
):  # fmt: skip
    """Layers `first` to `last` - 1 of LAYERS, over one token of each of M sequences.

    `x` (M, dim) is updated in place; `q` and `attended` are (M, heads, D), `gated` (M,
    width). `addresses` are int64 (LAYERS, ADDRESSES), of `Layer.tensors`; `codes`,
    `scale`, `zero`, `norm`, `k_cache` and `k_scale` are the first layer's and tell
    their types. Positions, angles and buffers are as in `heads_block`, `attend_block`
    and `project_block`, each buffer large enough for all of them. `peaks`, int32 (4,
    8), are used if ROUNDED. `arrivals` is an int32, 0 before and after.

    HEADS to DOWN are `launch_persistent.Tiles`; STRETCHES are `splits` of attention.
    Without WAITING a launch has one PHASE of one layer, and the next one the next.
    """
    programs = tl.num_programs(0)
    total = LAYERS * PHASES * programs
    # Rows of the peaks, as `FusedStep` has them.
    gated_peak = peaks if ROUNDED else None
    down_peak = peaks + 8 if ROUNDED else None
    following_peak = peaks + 16 if ROUNDED else None
    attended_peak = peaks + 24 if ROUNDED else None
    ROW: tl.constexpr = 8 if ROUNDED else 0
    for layer in range(first, last):
        own = addresses + layer * ADDRESSES
        arrived = layer * PHASES * programs
        if PHASE == ALL or PHASE == 0:
            heads_phase(
                (arrivals, arrived), x, address(own, 0, norm),
                weight_at(own, 3, codes, scale, zero), cos, sin, positions, q,
                cache_at(own, k_cache, k_scale), following_peak,
                parts, squares, split_counter, EPS, M, S,
                HEADS, ATTENTION, WAITING, TOKENS, STAGES,
            )  # fmt: skip
            arrive(arrivals, total)
        if PHASE == ALL or PHASE == 1:
            cache = cache_at(own, k_cache, k_scale)
            output = address(own, 6, codes)
            for item in range(tl.program_id(0), heads * STRETCHES, programs):
                attend_block(
                    item % heads, item // heads, heads, STRETCHES,
                    (arrivals, arrived + programs),
                    q, cache[0], cache[1], cache[2], cache[3], split_counter, filled,
                    parts, sums, attended, attended_peak, output, S, ATTENTION, WAITING,
                )  # fmt: skip
            arrive(arrivals, total)
        if PHASE == ALL or PHASE == 2:
            weight = weight_at(own, 6, codes, scale, zero)
            project_phase(
                (arrivals, arrived + 2 * programs), attended, None, weight, weight, x,
                attended_peak, gated_peak, down_peak, address(own, 1, norm),
                parts, squares, split_counter, EPS, M,
                OUTPUT, ADD, ROW, WAITING, TOKENS, STAGES,
            )  # fmt: skip
            arrive(arrivals, total)
        if PHASE == ALL or PHASE == 3:
            project_phase(
                (arrivals, arrived + 3 * programs), x, address(own, 1, norm),
                weight_at(own, 9, codes, scale, zero),
                weight_at(own, 12, codes, scale, zero), gated,
                gated_peak, down_peak, following_peak, None,
                parts, squares, split_counter, EPS, M,
                GATED, GATE, 2 * ROW, WAITING, TOKENS, STAGES,
            )  # fmt: skip
            arrive(arrivals, total)
        if PHASE == ALL or PHASE == 4:
            weight = weight_at(own, 15, codes, scale, zero)
            project_phase(
                (arrivals, arrived + 4 * programs), gated, None, weight, weight, x,
                down_peak, following_peak, gated_peak, address(own, 2, norm),
                parts, squares, split_counter, EPS, M,
                DOWN, ADD, ROW, WAITING, TOKENS, STAGES,
            )  # fmt: skip
            arrive(arrivals, total)
