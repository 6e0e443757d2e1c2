"""Triton building blocks: tokens as the second operand of products on tensor cores.

Of a tile, some pieces of a row's words, a token has SLOTS columns for each piece. Slot
by slot they are multiplied with those columns of the weight.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.launch import INTERPRETED


@triton.constexpr_function
def slot_loads(slots: int, run: int, apart: int) -> str:
    """PTX that loads so many values of 16 bits: a run side by side, the next apart."""
    loads, address, count = [], f"${slots}", min(run, 4)
    for first in range(0, slots, count):
        registers = ", ".join(f"${first + index}" for index in range(count))
        at = first // run * apart + first % run
        loads.append(f"ld.global.v{count}.b16 {{{registers}}}, [{address} + {2 * at}];")
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
def load_slots(x, k, SLOTS, RUN, APART, K, PARTIAL):
    """SLOTS columns of `x` from each `k` on, float32 each: any of x beyond K.

    RUN of them lie side by side; the first of a run is APART from that of the next.
    Triton may not know that these are loads: it would move those of the first steps in
    front of the wait for the kernel that writes `x`.
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    SPAN: tl.constexpr = SLOTS // RUN * APART
    values = ()
    if K % SPAN != 0 or INTERPRETED:
        # Loads of 16 bits each, which are never moved.
        for SLOT in tl.static_range(SLOTS):
            at = k + (SLOT // RUN * APART + SLOT % RUN)
            value = tl.load(x + at, mask=at < K, other=0.0)
            values = values + (value.to(tl.float32),)  # type: ignore[assignment]
    else:
        if PARTIAL:
            k = tl.minimum(k, K - SPAN)
        loaded = tl.inline_asm_elementwise(
            slot_loads(SLOTS, RUN, APART), slot_constraints(SLOTS), [x + k],
            dtype=repeated(TYPE, SLOTS), is_pure=False, pack=1,
        )  # fmt: skip
        for SLOT in tl.static_range(SLOTS):
            values = values + (loaded[SLOT].to(tl.float32),)  # type: ignore[assignment]
    return values


@triton.jit
def load_tile(
    x, norm, factor, squares, tile, own, token, k,
    SLOTS, RUN, APART, K, PARTIAL, RAGGED,
):  # fmt: skip
    """Columns of x * g * factor from each `k` of a tile on, as `load_slots` has them.

    0 are those beyond K and of tiles before `own`. Also `squares` with those of x
    added.
    """
    values = load_slots(x + token * K, k, SLOTS, RUN, APART, K, PARTIAL)
    inside = 1.0
    if PARTIAL:
        inside = tl.where((k < K) & (tile >= own), 1.0, 0.0)
    elif RAGGED:
        inside = tl.where(tile >= own, 1.0, 0.0)
    factor *= inside
    if norm is not None:
        weights = load_slots(norm, k, SLOTS, RUN, APART, K, PARTIAL)
        square = squares * 0.0
        for SLOT in tl.static_range(SLOTS):
            square += values[SLOT] * values[SLOT]
        squares += square * inside
    scaled = ()
    for SLOT in tl.static_range(SLOTS):
        value = values[SLOT] * factor
        if norm is not None:
            value *= weights[SLOT]
        scaled = scaled + (value,)  # type: ignore[assignment]
    return scaled, squares
