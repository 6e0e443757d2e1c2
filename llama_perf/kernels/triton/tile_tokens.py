"""Triton building blocks: tokens as the second operand of products on tensor cores.

Of a tile, 16 halves of words, a token has SLOTS columns for each half. Slot by slot
they are multiplied with those columns of the weight.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.launch import INTERPRETED


@triton.constexpr_function
def slot_loads(slots: int) -> str:
    """PTX that loads so many values of 16 bits, which lie side by side."""
    loads, address = [], f"${slots}"
    for first in range(0, slots, 4):
        count = min(slots, 4)
        registers = ", ".join(f"${first + index}" for index in range(count))
        at = f"{address} + {2 * first}" if first else address
        loads.append(f"ld.global.v{count}.b16 {{{registers}}}, [{at}];")
    return " ".join(loads)


@triton.constexpr_function
def slot_constraints(slots: int) -> str:
    """Those of `slot_loads`."""
    return ",".join(["=h"] * slots + ["l"])


@triton.constexpr_function
def repeated(value: object, count: int) -> tuple[object, ...]:
    """A tuple of the same."""
    return (value,) * count


@triton.jit
def load_slots(x, k, SLOTS, K, PARTIAL):
    """Columns `k` to k + SLOTS - 1 of `x`, float32 each: any of x beyond K.

    Triton may not know that these are loads: it would move those of the first steps in
    front of the wait for the kernel that writes `x`.
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    values = ()
    if K % SLOTS != 0 or INTERPRETED:
        # Loads of 16 bits each, which are never moved.
        for SLOT in tl.static_range(SLOTS):
            value = tl.load(x + (k + SLOT), mask=k + SLOT < K, other=0.0)
            values = values + (value.to(tl.float32),)  # type: ignore[assignment]
    else:
        if PARTIAL:
            k = tl.minimum(k, K - SLOTS)
        loaded = tl.inline_asm_elementwise(
            slot_loads(SLOTS), slot_constraints(SLOTS), [x + k],
            dtype=repeated(TYPE, SLOTS), is_pure=False, pack=1,
        )  # fmt: skip
        for SLOT in tl.static_range(SLOTS):
            values = values + (loaded[SLOT].to(tl.float32),)  # type: ignore[assignment]
    return values


@triton.jit
def load_tile(x, norm, factor, squares, tile, own, token, SLOTS, K, PARTIAL, RAGGED):
    """The SLOTS columns of x * g * factor of each half of a tile, float16.

    Each is (BATCH, 16, TOKENS). 0 are those beyond K and of tiles before `own`. Also
    their sum, float32, and `squares` with those of x added.
    """
    COLUMNS: tl.constexpr = 16 * SLOTS
    k = tile * COLUMNS + tl.arange(0, 16)[None, :, None] * SLOTS
    values = load_slots(x + token * K, k, SLOTS, K, PARTIAL)
    inside = 1.0
    if PARTIAL:
        inside = tl.where((k < K) & (tile >= own), 1.0, 0.0)
    elif RAGGED:
        inside = tl.where(tile >= own, 1.0, 0.0)
    factor *= inside
    if norm is not None:
        weights = load_slots(norm, k, SLOTS, K, PARTIAL)
        square = squares * 0.0
        for SLOT in tl.static_range(SLOTS):
            square += values[SLOT] * values[SLOT]
        squares += square * inside
    halves, x_sum = (), squares * 0.0
    for SLOT in tl.static_range(SLOTS):
        value = values[SLOT] * factor
        if norm is not None:
            value *= weights[SLOT]
        x_sum += value
        halves = halves + (value.to(tl.float16),)  # type: ignore[assignment]
    return halves, x_sum, squares
