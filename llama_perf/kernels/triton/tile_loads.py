"""Triton building blocks: what a program loads of a weight for tensor cores, by tiles.

A tile is as many columns of some rows as one product takes of each warp. A program has
STEPS of several tiles, side by side; the last split may have fewer.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.codes import FP6
from llama_perf.kernels.triton.launch import KNOWN_BOUNDS, load_once
from llama_perf.kernels.triton.tile_codes import widened, widest_plane


@triton.jit
def plane_halves(codes, row, tile, within, inside, START, WORDS_OF_TILE, WEIGHT):
    """int16 halves `within` of a tile's words, of a row's plane from word START on."""
    place = codes.to(tl.pointer_type(tl.int16), bitcast=True)
    return plane_pieces(place, row, tile, within, inside, START, WORDS_OF_TILE, WEIGHT)


@triton.jit
def plane_bytes(codes, row, tile, within, inside, START, WORDS_OF_TILE, WEIGHT):
    """The same of uint8 bytes."""
    place = codes.to(tl.pointer_type(tl.uint8), bitcast=True)
    return plane_pieces(place, row, tile, within, inside, START, WORDS_OF_TILE, WEIGHT)


@triton.jit
def plane_pieces(place, row, tile, within, inside, START, WORDS_OF_TILE, WEIGHT):
    """The same of pieces as large as those that `place` points to."""
    EACH: tl.constexpr = 32 // place.dtype.element_ty.primitive_bitwidth
    # The part that is the same for every tile comes first, to be computed once.
    place += (row // 16) * (WEIGHT.WORDS * 16 * EACH) + (row % 16) * EACH
    place += (START + within // EACH) * (16 * EACH) + within % EACH
    return load_once(place + tile * (WORDS_OF_TILE * 16 * EACH), inside)


@triton.jit
def load_planes(codes, row, tile, within, there, WEIGHT):
    """The words of a tile's halves, and the narrower planes' pieces, for `decoded`."""
    BITS: tl.constexpr = WEIGHT.BITS
    WIDE: tl.constexpr = widest_plane(BITS)
    UNITS: tl.constexpr = WEIGHT.UNITS
    START2: tl.constexpr = UNITS if BITS & 4 else 0
    START1: tl.constexpr = START2 + ((UNITS + 1) // 2 if BITS & 2 else 0)
    planes = (plane_halves(codes, row, tile, within, there, 0, 8, WEIGHT),)
    if BITS & 2 and WIDE == 4:
        pairs = plane_bytes(codes, row, tile, within, there, START2, 4, WEIGHT)
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


@triton.jit
def load_quads(codes, row, tile, known, PARTIAL, WEIGHT):
    """Eight words of quads, in bytes, and where they go, for `quad_columns`."""
    byte = tl.arange(0, 32)[None, None, :]
    word = tl.arange(0, 8)[None, None, :]
    there, placed = known, known
    if PARTIAL:
        there = known & (tile * 32 + byte < WEIGHT.UNITS * 4)
        placed = known & (tile * 8 + word < WEIGHT.UNITS)
    quads = plane_bytes(codes, row, tile, byte, there, 0, 8, WEIGHT)
    places = plane_halves(codes, row, tile, word, placed, WEIGHT.UNITS, 4, WEIGHT)
    # Repeated in registers: each byte of a word has them.
    places = tl.expand_dims(places.to(tl.int32), 3)
    BATCH: tl.constexpr = quads.shape[0]
    ROWS: tl.constexpr = quads.shape[1]
    places = tl.broadcast_to(places, (BATCH, ROWS, 8, 4)).reshape(BATCH, ROWS, 32)
    return quads, places


@triton.constexpr_function
def is_ragged(columns: int, of_step: int, steps: int) -> bool:
    """Whether a split's steps may have more columns than are left for it."""
    if KNOWN_BOUNDS.value:
        # There every split has all steps.
        of_step *= steps
    remaining: int = columns % of_step
    return remaining != 0


@triton.jit
def tiles_of(split, STEPS, TILES, TILES_A_STEP, RAGGED):
    """A split's own first tile, how many steps it has, and where they begin.

    All but the last one have STEPS. The last of several begins before its own tiles, so
    that its steps end where the tiles do.
    """
    own = split * (STEPS * TILES_A_STEP)
    TOTAL: tl.constexpr = (TILES + TILES_A_STEP - 1) // TILES_A_STEP
    steps = STEPS
    if TOTAL % STEPS != 0 and not KNOWN_BOUNDS:
        steps = tl.minimum(TOTAL - split * STEPS, STEPS)
        # No branch around the loop, in which the program waits.
        tl.assume(steps > 0)
    first = own
    if RAGGED:
        first = tl.maximum(tl.minimum(own, TILES - steps * TILES_A_STEP), 0)
    return own, steps, first
