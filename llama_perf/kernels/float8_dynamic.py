"""float8 products: y[m, n] = a[m] * s[n] * sum over k of p[m, k] * v(c[n, k]).

`p` are the tokens' values rounded to e4m3, with a float32 scale `a` for each token or
for all of them; `c`, `v` and `s` are the weight FLOAT8 of `row_scaled`, which does the
product: bfloat16 holds every value of e4m3 exactly, so that nothing but the sums is
rounded, in float32, on a card without float8 too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.kernels.cpu.one_token import fused_here
from llama_perf.kernels.row_scaled import FLOAT8, float8_weight_op, round_to_float8


def quantize_tokens(x: Tensor, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """e4m3 values in float32 (M, K) and float32 scales (M, 1) of tokens `x`, (M, K).

    With `whole` one scale for all tokens, (1, 1).
    """
    wide = x.float()
    peak = wide.abs().amax(1, keepdim=True)
    if whole and len(x) > 1:
        peak = peak.amax(0, keepdim=True)
    scale = (peak / FLOAT8.largest).clamp(min=torch.finfo(torch.float32).tiny)
    largest = FLOAT8.largest
    return round_to_float8((wide / scale).clamp(-largest, largest)), scale


def reference(
    x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, rows: int
) -> Tensor:
    """The product by the formula, with the sums in float64."""
    weight = FLOAT8.dequantized(codes, torch.ones_like(scale), rows, x.shape[1])
    sums = (x.double() @ weight.double().T).float()
    return sums * x_scale * scale.flatten()[:rows]


def float8_dynamic(
    x: Tensor, codes: Tensor, scale: Tensor, rows: int, *, whole: bool = False
) -> Tensor:
    """`x` (M, K), quantized, times the transposed weight; in x's dtype.

    Each token has a scale of its own, or with `whole` all of them one.
    """
    values, x_scale = quantize_tokens(x, whole=whole)
    if fused_here(x):
        # In strides of their own, so that a compiler keeps the values: else it would
        # round them anew for every row.
        values = values.as_strided(values.shape, (values.shape[1], 1))
        sums = FLOAT8.one_token(values, codes, scale, rows)
    else:
        exact = values.to(torch.bfloat16)
        sums = float8_weight_op(exact, codes, scale, rows, torch.float32)
    return (sums * x_scale).to(x.dtype)
