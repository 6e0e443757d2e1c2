"""Products of tokens with a packed weight, y = x W^T, and what rounds tokens before.

A format's formula is in `row_scaled`, `grouped` or `sparse`, which have two functions
of a `Packed` each: `many_tokens`, (M, K) to (M, 16 * B), is for a CPU without a
compiler; `blocks` is the weight, (B, K, 16). Both are in float32. The product on a CPU
is `cpp/products.cpp`, that on a GPU `triton/launch_products.py`.

Where activations are rounded, a token's values have a float32 scale `a`, its own one
or that of all tokens:

    y[m, n] = a[m] * s[n] * sum over k of p[m, k] * v(c[n, k])

`v(c)` and `s` are a weight of `row_scaled`. The sums of int8 are exact, in int32, for
every M: below 2**31 as long as K < 2**17. Values of e4m3 are multiplied as bfloat16,
which holds each of them exactly: nothing but the sums is rounded, in float32, on a
card without float8 too.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import cpp_library, grouped, row_scaled, sparse
from llama_perf.kernels.cpu import int8_sums
from llama_perf.kernels.packing import from_lanes
from llama_perf.kernels.row_scaled import FLOAT8, INT8, round_to_float8
from llama_perf.kernels.weight import FLOATS, SPARSE, Activations, Packed


def product(x: Tensor, weight: Packed) -> Tensor:
    """`x` (M, K), rounded as `weight` says, times its transpose: (M, rows) as x."""
    tensors, numbers = weight.tensors, weight.numbers
    out: Tensor
    if weight.activations == "kept":
        out = packed_product(x, *tensors, numbers, x.dtype)
        return out
    values, x_scale = quantize_tokens(x, weight.activations)
    if weight.dynamic:
        out = packed_product(values, *tensors, numbers, torch.float32, x_scale)
    else:
        values = values.to(torch.bfloat16)
        out = packed_product(values, *tensors, numbers, torch.float32) * x_scale
    return out.to(x.dtype)


def float_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` (..., K) times the transposed weight (N, K), both floats, one token."""
    numbers = [*weight.shape, FLOATS, 0, 0, 0, 0]
    tokens = x.reshape(-1, x.shape[-1])
    out: Tensor = packed_product(tokens, weight, weight, weight, numbers, x.dtype)
    return out.view(*x.shape[:-1], -1)


def dequantized(weight: Packed) -> Tensor:
    """The weight, float32 (rows, columns)."""
    return from_lanes(_format(weight).blocks(weight), weight.rows)


def quantize_tokens(x: Tensor, activations: Activations) -> tuple[Tensor, Tensor]:
    """Values of tokens `x`, (M, K), and their float32 scales, (M, 1) or (1, 1).

    The values are int8, or those of e4m3 in float32.
    """
    wide = x.float()
    peak = wide.abs().amax(1, keepdim=True)
    if activations == "float8-tensor" and len(x) > 1:
        peak = peak.amax(0, keepdim=True)
    largest = (INT8 if activations == "int8" else FLOAT8).largest
    scale = (peak / largest).clamp(min=torch.finfo(torch.float32).tiny)
    values = (wide / scale).clamp(-largest, largest)
    if activations == "int8":
        return torch.round(values).to(torch.int8), scale
    return round_to_float8(values), scale


def _format(weight: Packed) -> Any:
    if weight.format == SPARSE:
        return sparse
    return grouped if weight.group else row_scaled


torch.library.define(
    "llama_perf::packed_product",
    "(Tensor x, Tensor codes, Tensor scale, Tensor zero, int[] numbers,"
    " ScalarType dtype, Tensor? x_scale=None) -> Tensor",
)
packed_product = torch.ops.llama_perf.packed_product.default
"""The operator itself: any M, any device, any format; (M, rows) in `dtype`.

A weight is as of `Packed`. With `x_scale`, (M, 1), `x` are int8 tokens, multiplied
with int8 codes; `dtype` is float32. Weights of floats are for a CPU.
"""


@torch.library.impl("llama_perf::packed_product", "default")
def _(x: Tensor, *rest: Any) -> Tensor:
    if cpp_library.load() is None:
        # Torch knows it from now on.
        out: Tensor = packed_product(x, *rest)
        return out
    return in_plain_torch(x, *rest)


def in_plain_torch(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    numbers: Sequence[int],
    dtype: torch.dtype,
    x_scale: Tensor | None = None,
) -> Tensor:
    """`packed_product` on a CPU without a compiler."""
    weight = Packed(codes, scale, zero, *numbers)
    if x_scale is not None:
        sums = int8_sums(x, codes, exact=True)[:, : weight.rows].to(torch.float32)
        return sums * x_scale * scale.flatten()[: weight.rows]
    if weight.format == FLOATS:
        return F.linear(x.to(codes.dtype), codes).to(dtype)
    out: Tensor = _format(weight).many_tokens(x.float(), weight)
    return out[:, : weight.rows].to(dtype).contiguous()


@torch.library.register_fake("llama_perf::packed_product")  # type: ignore[untyped-decorator]
def _(x: Tensor, *rest: Any) -> Tensor:
    _, _, _, numbers, dtype, *_ = rest
    return x.new_empty((len(x), numbers[0]), dtype=dtype)


def on_gpu(x: Tensor, *rest: Any) -> Tensor:
    """`packed_product` by Triton."""
    from llama_perf.kernels.triton import launch_products

    codes, scale, zero, numbers, *how = rest
    weight = Packed(codes, scale, zero, *numbers)
    return launch_products.product(x, weight, *how)


torch.library.impl("llama_perf::packed_product", "CUDA", on_gpu)
