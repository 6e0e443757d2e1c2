"""float8 products: y[m, n] = a[m] * s[n] * sum over k of p[m, k] * v(c[n, k]).

`p` are the tokens' values rounded to e4m3, with a float32 scale `a` for each token or
for all of them; `c`, `v` and `s` are the weight FLOAT8 of `row_scaled`, which does the
product: bfloat16 holds every value of e4m3 exactly, so that nothing but the sums is
rounded, in float32, on a card without float8 too.
"""

import torch
from torch import Tensor

from llama_perf.kernels.cpu.one_token import fused_here
from llama_perf.kernels.row_scaled import FLOAT8, round_to_float8


def quantize_tokens(x: Tensor, *, per_tensor: bool = False) -> tuple[Tensor, Tensor]:
    """e4m3 values in float32 (M, K) and float32 scales (M, 1) of tokens `x`, (M, K).

    With `per_tensor` one scale for all tokens, (1, 1).
    """
    wide = x.float()
    peak = wide.abs().amax(1, keepdim=True)
    if per_tensor and len(x) > 1:
        peak = peak.amax(0, keepdim=True)
    scale = (peak / FLOAT8.largest).clamp(min=torch.finfo(torch.float32).tiny)
    largest = FLOAT8.largest
    return round_to_float8((wide / scale).clamp(-largest, largest)), scale


def float8_dynamic(
    x: Tensor, codes: Tensor, scale: Tensor, rows: int, *, per_tensor: bool = False
) -> Tensor:
    """`x` (M, K), quantized, times the transposed weight; in x's dtype.

    Each token has its own scale; with `per_tensor` all tokens share one.
    """
    values, x_scale = quantize_tokens(x, per_tensor=per_tensor)
    if fused_here(x):
        # With strides of their own a compiler stores the values; otherwise it would
        # round them anew for every row.
        values = values.as_strided(values.shape, (values.shape[1], 1))
        sums = FLOAT8.one_token(values, codes, scale, rows)
    else:
        exact = values.to(torch.bfloat16)
        sums = FLOAT8.operator(exact, codes, scale, rows, torch.float32)
    return (sums * x_scale).to(x.dtype)
