"""int8 products: y[m, n] = a[m] * s[n] * sum over k of p[m, k] * q[n, k].

`p` are the tokens' values in int8 with a float32 scale `a` for each token, `q` and `s`
an INT8 weight of `row_scaled`. The sum is exact, in int32, for every M: below 2**31 as
long as K < 2**17. A CPU with instructions for such sums takes `q` as int8 rows (N, K).
"""

import torch
from torch import Tensor

from llama_perf.devices.processor import has_fast_int8_products, int8_products_are_exact
from llama_perf.kernels.cpu.many_tokens import int8_sums
from llama_perf.kernels.cpu.one_token import fused_here, unit_sums
from llama_perf.kernels.row_scaled import INT8


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (M, K) and float32 scales (M, 1) of tokens `x`, (M, K)."""
    wide = x.float()
    scale = wide.abs().amax(1, keepdim=True) / 127
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(wide / scale).clamp(-127, 127).to(torch.int8), scale


def takes_int8_rows(device: torch.device, columns: int) -> bool:
    """Whether `device` multiplies int8 (N, K) of `columns` fastest and exactly.

    With one column torch 2.13 does not write the result.
    """
    return device.type == "cpu" and columns > 1 and has_fast_int8_products()


def is_int8_rows(codes: Tensor) -> bool:
    """Whether codes are int8 (N, K) and not words."""
    return codes.dtype == torch.int8


def int8_dynamic(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """`x` (M, K), quantized by token, times the transposed weight; in x's dtype.

    `codes` are words, or int8 (N, K) where `takes_int8_rows` says so.
    """
    quantized, x_scale = quantize_tokens(x)
    if fused_here(x) and not is_int8_rows(codes):
        tokens = quantized.to(torch.int32)
        sums = unit_sums(tokens, codes, INT8.bits, _signed, (1,)).to(torch.float32)
        out = (sums * x_scale * scale).view(1, -1)[:, :rows]
    else:
        out = int8_dynamic_op(quantized, x_scale, codes, scale, rows)
    return out.to(x.dtype)


@torch.library.custom_op("llama_perf::int8_dynamic", mutates_args=())
def int8_dynamic_op(
    x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, rows: int
) -> Tensor:
    """The operator itself: int8 tokens and their scales to float32 (M, rows).

    int8 rows are multiplied in here too, where no compiler sees it: torch 2.11 compiles
    `_int_mm` with two scales to wrong values for one token.
    """
    tokens, columns = x.shape
    if is_int8_rows(codes):
        # A compiler may write any stride for one token, and with any other than this
        # one torch 2.13 does not write the result.
        x = x.as_strided(x.shape, (columns, 1)) if tokens == 1 else x.contiguous()
        if int8_products_are_exact():
            sums = torch._int_mm(x, codes.t())
        else:
            # Rows that were laid out on another processor: slow, but not wrong.
            sums = x.double() @ codes.double().t()
    else:
        sums = int8_sums(x, codes, exact=True)[:, :rows]
    return sums.to(torch.float32) * x_scale * scale.flatten()[:rows]


@int8_dynamic_op.register_fake
def _(x: Tensor, x_scale: Tensor, _codes: Tensor, _scale: Tensor, rows: int) -> Tensor:
    return x_scale.new_empty((x.shape[0], rows))


@int8_dynamic_op.register_kernel("cuda")
def _(x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    from llama_perf.kernels.triton.launch_products import int8_dynamic_product

    return int8_dynamic_product(x, x_scale, codes, scale, rows, asm=True)


def _signed(code: Tensor) -> Tensor:
    return (code << 24) >> 24
