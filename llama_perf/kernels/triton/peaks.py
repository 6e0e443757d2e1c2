"""Triton building blocks: the largest |x * g| of each token, its peak.

It decides how tokens are rounded: to int8 by a 127th of it, to float16 and to digits by
the power of two in it. The kernel in front leaves it, or a program looks for it. Where
it is not finite, the token's product is not either.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.launch import load_late, wait_for_input

# Of less, a 127th would not be a normal float32.
_LEAST = tl.constexpr(1.5e-36)


@triton.jit
def larger(first, second):
    """The larger of two floats; NaN, which others pass over, if one of them is NaN."""
    return tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest_bits(sizes, AXIS=None, KEEP=False):
    """The int32 bits of the largest of float32 that are not negative, or of NaN."""
    peak = tl.reduce(sizes, AXIS, larger, keep_dims=KEEP)
    return peak.to(tl.int32, bitcast=True)


@triton.jit
def raise_peak(place, bits, mask=None):
    """`bits` of a float32 that is not negative at int32 `place`, if it is larger."""
    # The end of the kernel or the phase makes them known: no program waits for its
    # other stores here.
    tl.atomic_max(place, bits, mask=mask, sem="relaxed")


@triton.constexpr_function
def at_once(columns: int, tokens: int) -> int:
    """As many columns as the registers hold, or all and up to twice as many."""
    block = 4096 // tokens
    while block >= 2 * columns:
        block //= 2
    return block


@triton.jit
def token_peak(x, norm, first, M, K, SPAN, TOKENS):
    """The largest |x * g| of each token, (TOKENS,), in SPAN columns from `first` on."""
    # Each round waits for memory.
    BLOCK: tl.constexpr = at_once(SPAN, TOKENS)
    token = tl.minimum(tl.arange(0, TOKENS), M - 1)[:, None]
    peak = tl.full((TOKENS, BLOCK), _LEAST, tl.float32)
    for start in range(0, SPAN, BLOCK):
        k = (first + start + tl.arange(0, BLOCK))[None, :]
        value = tl.load(x + token * K + k, mask=k < K, other=0.0).to(tl.float32)
        if norm is not None:
            value *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        peak = larger(peak, tl.abs(value))
    return largest_bits(peak, 1).to(tl.float32, bitcast=True)


@triton.jit
def peak_before_loop(
    x, norm, peaks_in, ready, first, M, K, SPAN, TOKENS, DEPENDENT
):  # fmt: skip
    """`token_peak`, once the input is there; anything where `known_peak` has them."""
    peak = tl.full((TOKENS,), 1.0, tl.float32)
    if peaks_in is None:
        if DEPENDENT:
            wait_for_input(ready, 0)
        peak = token_peak(x, norm, first, M, K, SPAN, TOKENS)
    return peak


@triton.jit
def known_peak(peaks_in, M, TOKENS):
    """Those that the kernel in front has written, of all columns."""
    token = tl.minimum(tl.arange(0, TOKENS), M - 1)
    peak = load_late(peaks_in + token, token >= 0)
    return larger(peak.to(tl.float32, bitcast=True), _LEAST)


@triton.jit
def power_of_two(peak, BITS):
    """What brings `peak` to less than 2**BITS."""
    return ((253 - exponent_beyond(peak, BITS)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_power_of_two(peak, BITS):
    """What undoes `power_of_two`; NaN unless the peak is finite."""
    power = ((exponent_beyond(peak, BITS) + 1) << 23).to(tl.float32, bitcast=True)
    return tl.where(peak < float("inf"), power, float("nan"))


@triton.jit
def exponent_beyond(peak, BITS):
    """The exponent's bits less BITS, or 0, with which both powers are float32."""
    return tl.maximum((peak.to(tl.int32, bitcast=True) >> 23) - BITS, 0)
