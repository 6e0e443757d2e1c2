"""Products of tokens with a packed weight, y = x W^T, and what rounds tokens before.

A format's formula is in `row_scaled`, `grouped` or `sparse`, which have three functions
of a `Packed` each: `one_token`, (1, K) to sums of (B, 16), is an expression that a
compiler turns into one loop over the words; `many_tokens`, (M, K) to (M, 16 * B), is
for a CPU without a compiler; `blocks` is the weight, (B, K, 16). All are in float32.

Where activations are rounded, a token's values have a float32 scale `a`, its own one
or that of all tokens:

    y[m, n] = a[m] * s[n] * sum over k of p[m, k] * v(c[n, k])

`v(c)` and `s` are a weight of `row_scaled`. The sums of int8 are exact, in int32, for
every M: below 2**31 as long as K < 2**17. A CPU with instructions for such sums takes
`c` as int8 rows (N, K). Values of e4m3 are multiplied in bfloat16, which holds each of
them exactly: nothing but the sums is rounded, in float32, on a card without float8 too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama_perf.devices.processor import has_fast_int8_products, int8_products_are_exact
from llama_perf.kernels import grouped, row_scaled, sparse
from llama_perf.kernels.cpu import fused_here, int8_sums, unit_sums
from llama_perf.kernels.packing import from_lanes
from llama_perf.kernels.row_scaled import FLOAT8, INT8, round_to_float8, signed
from llama_perf.kernels.weight import SPARSE, Activations, Packed


def product(x: Tensor, weight: Packed) -> Tensor:
    """`x` (M, K), rounded as `weight` says, times its transpose: (M, rows) as x."""
    if weight.activations == "kept":
        return _product(x, weight, x.dtype)
    values, x_scale = quantize_tokens(x, weight.activations)
    if weight.dynamic:
        return _product(values, weight, torch.float32, x_scale).to(x.dtype)
    if fused_here(x):
        # With strides of their own a compiler stores the values; otherwise it would
        # round them anew for every row.
        values = values.as_strided(x.shape, (x.shape[1], 1))
    else:
        values = values.to(torch.bfloat16)
    return (_product(values, weight, torch.float32) * x_scale).to(x.dtype)


def dequantized(weight: Packed) -> Tensor:
    """The weight, float32 (rows, columns)."""
    if is_int8_rows(weight.codes):
        scale = weight.scale.flatten()[: weight.rows]
        return weight.codes.float() * scale.unsqueeze(1)
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


def takes_int8_rows(device: torch.device, columns: int) -> bool:
    """Whether `device` multiplies int8 (N, K) of `columns` fastest and exactly.

    With one column torch 2.13 does not write the result.
    """
    return device.type == "cpu" and columns > 1 and has_fast_int8_products()


def is_int8_rows(codes: Tensor) -> bool:
    """Whether codes are int8 (N, K) and not words."""
    return codes.dtype == torch.int8


def _format(weight: Packed) -> Any:
    if weight.format == SPARSE:
        return sparse
    return grouped if weight.group else row_scaled


def _product(
    x: Tensor, weight: Packed, dtype: torch.dtype, x_scale: Tensor | None = None
) -> Tensor:
    if not fused_here(x) or is_int8_rows(weight.codes):
        how = (weight.numbers, dtype, x_scale)
        out: Tensor = packed_product(x, *weight.tensors, *how)
        return out
    if x_scale is None:
        sums: Tensor = _format(weight).one_token(x.float(), weight)
    else:
        exact = unit_sums(x.to(torch.int32), weight.codes, weight.bits, signed)
        sums = exact.to(torch.float32) * x_scale * weight.scale
    return sums.view(1, -1)[:, : weight.rows].to(dtype)


@torch.library.custom_op("llama_perf::packed_product", mutates_args=())
def packed_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    numbers: Sequence[int],
    dtype: torch.dtype,
    x_scale: Tensor | None = None,
) -> Tensor:
    """The operator itself: any M, any device, any format; (M, rows) in `dtype`.

    A weight is as of `Packed`. With `x_scale`, (M, 1), `x` are int8 tokens, multiplied
    with int8 codes; `dtype` is float32.
    """
    weight = Packed(codes, scale, zero, *numbers)
    if x_scale is not None:
        sums = _exact_sums(x, weight).to(torch.float32)
        return sums * x_scale * scale.flatten()[: weight.rows]
    out: Tensor = _format(weight).many_tokens(x.float(), weight)
    return out[:, : weight.rows].to(dtype).contiguous()


@packed_product.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    _, _, _, numbers, dtype, *_ = rest
    return x.new_empty((len(x), numbers[0]), dtype=dtype)


@packed_product.register_kernel("cuda")
def _(x: Tensor, *rest: Any) -> Tensor:
    from llama_perf.kernels.triton import launch_products

    codes, scale, zero, numbers, *how = rest
    weight = Packed(codes, scale, zero, *numbers)
    return launch_products.product(x, weight, *how)


def _exact_sums(x: Tensor, weight: Packed) -> Tensor:
    """Of int8 tokens and codes, (M, rows).

    int8 rows are multiplied in the operator, where no compiler sees it: torch 2.11
    compiles `_int_mm` with two scales to wrong values for one token.
    """
    codes, (tokens, columns) = weight.codes, x.shape
    if not is_int8_rows(codes):
        return int8_sums(x, codes, exact=True)[:, : weight.rows]
    # A compiler may write any stride for one token, and with any other than this one
    # torch 2.13 does not write the result.
    x = x.as_strided(x.shape, (columns, 1)) if tokens == 1 else x.contiguous()
    if int8_products_are_exact():
        return torch._int_mm(x, codes.t())
    # Rows that were laid out on another processor: slow, but not wrong.
    return x.double() @ codes.double().t()
