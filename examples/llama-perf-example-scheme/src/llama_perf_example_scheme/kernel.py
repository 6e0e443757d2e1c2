"""The product of NF4 by Triton: y = f(norm(x) W^T) for up to eight tokens.

Each program reads eight rows of the weight once and multiplies all tokens with them.
The squares of x are summed on the way, so the norm costs no kernel of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llama_perf_example_scheme.nf4 import GROUP

BLOCK_N = 8


@triton.jit
def _sums(even, odd, codes, scale, levels, n, pair, inside, K, GROUP):
    """Tokens times rows `n`, over the columns 2 * `pair` and 2 * `pair` + 1."""
    byte = tl.load(codes + n * (K // 2) + pair, mask=inside, other=0).to(tl.int32)
    s = tl.load(scale + n * (K // GROUP) + 2 * pair // GROUP, mask=inside, other=0.0)
    low = tl.load(levels + (byte & 15)) * s.to(tl.float32)
    high = tl.load(levels + (byte >> 4)) * s.to(tl.float32)
    return tl.sum(even[:, None, :] * low[None] + odd[:, None, :] * high[None], axis=2)


@triton.jit
def _kernel(
    x, codes, scale, levels, codes2, scale2, norm, residual, out, EPS, M, N,
    K: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Rows of the weight, BLOCK_N for each program; BLOCK_P bytes of each at a time."""
    m = tl.arange(0, TOKENS)[:, None]
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((TOKENS, BLOCK_N), tl.float32)
    second = tl.zeros((TOKENS, BLOCK_N), tl.float32)
    squares = tl.zeros((TOKENS, BLOCK_P), tl.float32)
    for start in range(0, K // 2, BLOCK_P):
        pair = (start + tl.arange(0, BLOCK_P))[None, :]
        inside = pair < K // 2
        place = x + m * K + 2 * pair
        even = tl.load(place, mask=inside & (m < M), other=0.0).to(tl.float32)
        odd = tl.load(place + 1, mask=inside & (m < M), other=0.0).to(tl.float32)
        if norm is not None:
            squares += even * even + odd * odd
            even *= tl.load(norm + 2 * pair, mask=inside, other=0.0).to(tl.float32)
            odd *= tl.load(norm + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
        rows = n[:, None]
        at = rows, pair, inside & (rows < N)
        total += _sums(even, odd, codes, scale, levels, *at, K, GROUP)
        if codes2 is not None:
            second += _sums(even, odd, codes2, scale2, levels, *at, K, GROUP)
    if norm is not None:
        rms = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / K + EPS)
        total *= rms
        second *= rms
    if codes2 is not None:
        total = total * tl.sigmoid(total) * second
    place, inside = m * N + n[None, :], (m < M) & (n[None, :] < N)
    if residual is not None:
        total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    levels: Tensor,
    second: tuple[Tensor | None, Tensor | None],
    norm: tuple[Tensor | None, float],
    residual: Tensor | None,
) -> Tensor:
    """Start the kernel; the tensors are those of `nf4_product`."""
    (tokens, columns), rows = x.shape, len(first[0])
    out = x.new_empty((tokens, rows))
    padded = triton.next_power_of_2(tokens)
    pointers = (x, *first, levels, *second, norm[0], residual, out)
    _kernel[(triton.cdiv(rows, BLOCK_N),)](
        *pointers,
        norm[1],
        tokens,
        rows,
        K=columns,
        TOKENS=padded,
        BLOCK_N=BLOCK_N,
        BLOCK_P=max(256 // padded, 32),
        GROUP=GROUP,
    )
    return out


# An operator, so that `torch.compile` need not look inside.
@torch.library.custom_op("llama_perf_example::nf4_product", mutates_args=())
def nf4_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    levels: Tensor,
    codes2: Tensor | None,
    scale2: Tensor | None,
    norm: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    """See `nf4.product`."""
    second, before = (codes2, scale2), (norm, eps)
    return launch(x, (codes, scale), levels, second, before, residual)


@nf4_product.register_fake
def _(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty((len(x), len(codes)))
