"""Products of codes, and when two results of them are the same, on any processor.

Two orders of the same float32 sums differ in the last bits, and a value that close to
the border of two codes gets one of them in one order and the other in the other one:
its code is turned over. How many do is chance, and another processor's chance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llama_perf.kernels import float8_dynamic, int8_dynamic

# The schemes that round activations, and how.
QUANTIZE_TOKENS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8dq": int8_dynamic.quantize_tokens,
    "float8dq-row": float8_dynamic.quantize_tokens,
    "float8dq-tensor": partial(float8_dynamic.quantize_tokens, per_tensor=True),
}


def equal_up_to_turned_codes(result: Tensor, expected: Tensor, exact: Tensor) -> bool:
    """Whether they differ by less than rounding moved `expected` off `exact`.

    `exact` is the same without codes. A step s between codes gives an error of
    s**2 / 12 in the mean, and a code that is turned over one of s**2. So the two sides
    differ by as much only where a twelfth of all codes is turned over. Last bits turn
    over one in thousands; a wrong scale, position or mask moves the whole signal.
    """
    noise = (result.double() - expected).square().mean()
    rounding = (expected.double() - exact).square().mean()
    return bool(noise < rounding)


def exact_int_mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of torch's `_int_mm`, of which a CPU without VNNI has no fast one.

    The same int32 bit for bit: float64 holds every sum below 2**53. Where
    ONEDNN_MAX_CPU_ISA takes VNNI away, torch's own saturates.
    """
    return (a.double() @ b.double()).to(torch.int32)
