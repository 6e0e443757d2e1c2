"""Launches of the Triton kernels: block sizes, splits of K, and the operators' calls.

Imported only where Triton is: on a CUDA device, in its interpreter, or to compile
ahead of time. Knows no torchao.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from llama_perf.kernels.packing import units
from llama_perf.kernels.sparse import kept
from llama_perf.kernels.triton.codes import FLOAT8, FP6, INT8, UNSIGNED
from llama_perf.kernels.triton.dependent_launch import multiprocessors
from llama_perf.kernels.triton.int8_dynamic import few_tokens_int8, many_tokens_int8
from llama_perf.kernels.triton.sparse import few_tokens_sparse, many_tokens_sparse
from llama_perf.kernels.triton.weight_only import few_tokens, many_tokens

FEW = 8
INTERPRETED = bool(triton.knobs.runtime.interpret)
# For each of the card's processors, which they fill several times over.
_PROGRAMS = 4
_BLOCK_N = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a kernel is started: its grid, its constants and its warps."""

    grid: tuple[int, ...]
    constants: dict[str, int]
    warps: int
    stages: int = 2

    @property
    def splits(self) -> int:
        """Parts of K that different programs sum."""
        return self.grid[1]


def few_launch(
    tokens: int, rows: int, columns: int, *, most_u: int = 128, least_u: int = 16
) -> Launch:
    """A GEMV of at most eight tokens: about 8 KB of codes in flight a program."""
    padded = 1 << (tokens - 1).bit_length()
    block_u = max(most_u // padded, least_u)
    steps = -(-units(columns) // block_u)
    blocks = -(-rows // _BLOCK_N)
    splits = min(max(_PROGRAMS * multiprocessors() // blocks, 1), steps)
    each = -(-steps // splits)
    return Launch(
        grid=(blocks, -(-steps // each)),
        constants={
            "TOKENS": padded,
            "BLOCK_U": block_u,
            "BLOCK_N": _BLOCK_N,
            "STEPS": each,
        },
        warps=4,
    )


def codes_launch(tokens: int, rows: int, columns: int, *, decode: int) -> Launch:
    """Of the kernels of `triton_weight_only`, for codes that are decoded so."""
    if tokens > FEW:
        return many_launch(tokens, rows, columns)
    # Of several tokens and 128 units of float8 the sums spill registers on sm_90.
    fewer = decode == FLOAT8.value and tokens > 1
    return few_launch(max(tokens, 1), rows, columns, most_u=64 if fewer else 128)


def many_launch(tokens: int, rows: int, columns: int, *, least_u: int = 16) -> Launch:
    """A tiled product on tensor cores."""
    block_m = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    if least_u > 16:
        # A larger tile of int32 sums spills registers on sm_80.
        block_m = min(block_m, 32)
    block_n = 64
    return Launch(
        grid=(-(-rows // block_n), -(-tokens // block_m)),
        constants={
            "BLOCK_M": block_m,
            "BLOCK_U": least_u,
            "BLOCK_N": block_n,
            "STEPS": -(-units(columns) // least_u),
        },
        warps=4,
    )


def sparse_launch(tokens: int, rows: int, columns: int) -> Launch:
    """Of either kernel of `triton_sparse`, whose units are of kept values."""
    if tokens <= FEW:
        # A unit takes twice as many x as elsewhere: half as many units fill as many
        # registers, and twice as many programs run at a time.
        return few_launch(max(tokens, 1), rows, kept(columns), most_u=64)
    if tokens <= 16:
        return many_launch(tokens, rows, kept(columns))
    # Tiles of 64 tokens with eight warps: those of 32 spill registers with float32
    # activations, and those of 64 with four warps do on sm_80.
    return replace(many_launch(max(tokens, 64), rows, kept(columns)), warps=8)


def _product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    *,
    dtype: torch.dtype | None = None,
    **format: Any,
) -> Tensor:
    dtype = dtype or x.dtype
    tokens, columns = x.shape
    x = x.contiguous()
    constants = {"K": columns, "WORDS": codes.shape[1], **format}
    launch = codes_launch(tokens, rows, columns, decode=format["DECODE"])
    if tokens > FEW:
        out = x.new_empty((tokens, rows), dtype=dtype)
        kernel = many_tokens
        constants["WIDE"] = INTERPRETED
    else:
        kernel = few_tokens
        partial = torch.float32 if launch.splits > 1 else dtype
        out = x.new_empty((launch.splits, tokens, rows), dtype=partial)
    if tokens:
        kernel[launch.grid](
            x,
            codes,
            scale,
            zero,
            out,
            tokens,
            rows,
            **constants,
            **launch.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    if tokens > FEW:
        return out
    return out.sum(0).to(dtype) if len(out) > 1 else out[0]


def int8_product(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """See `int8_weight`."""
    return _product(
        x, codes, scale, scale, rows, BITS=8, DECODE=INT8.value, GROUP=0, ZERO=0
    )


def fp6_product(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """See `fp6_weight`."""
    return _product(
        x, codes, scale, scale, rows, BITS=6, DECODE=FP6.value, GROUP=0, ZERO=0
    )


def float8_product(
    x: Tensor, codes: Tensor, scale: Tensor, rows: int, *, dtype: torch.dtype
) -> Tensor:
    """See `float8_weight`; the product is in `dtype`."""
    format = {"BITS": 8, "DECODE": FLOAT8.value, "GROUP": 0, "ZERO": 0}
    return _product(x, codes, scale, scale, rows, dtype=dtype, **format)


def grouped_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    *,
    bits: int,
    kind: int,
) -> Tensor:
    """See `grouped_weight`; `kind` is the kernels' ZERO."""
    return _product(
        x,
        codes,
        scale,
        zero,
        rows,
        BITS=bits,
        DECODE=UNSIGNED.value,
        GROUP=x.shape[1] // scale.shape[1],
        ZERO=kind,
    )


def sparse_product(x: Tensor, codes: Tensor, scale: Tensor, rows: int) -> Tensor:
    """See `sparse_weight`."""
    tokens, columns = x.shape
    x = x.contiguous()
    constants: dict[str, Any] = {"K": columns, "WORDS": codes.shape[1]}
    launch = sparse_launch(tokens, rows, columns)
    if tokens <= FEW:
        dtype = torch.float32 if launch.splits > 1 else x.dtype
        out = x.new_empty((launch.splits, tokens, rows), dtype=dtype)
        kernel = few_tokens_sparse
    else:
        out = x.new_empty((1, tokens, rows))
        kernel = many_tokens_sparse
        constants["WIDE"] = INTERPRETED
    if tokens:
        kernel[launch.grid](
            x,
            codes,
            scale,
            out,
            tokens,
            rows,
            **constants,
            **launch.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return out.sum(0).to(x.dtype) if len(out) > 1 else out[0]


def int8_dynamic_product(
    x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, rows: int, *, asm: bool
) -> Tensor:
    """See `int8_dynamic`: int32 sums (M, rows), scaled, in float32."""
    tokens, columns = x.shape
    width = units(columns) * 8
    if width != columns:
        # The kernels read four columns of x at a time.
        x = torch.nn.functional.pad(x, (0, width - columns))
    x = x.contiguous()
    few = tokens <= FEW
    if few:
        launch = few_launch(max(tokens, 1), rows, columns)
        out = x.new_empty((launch.splits, tokens, rows), dtype=torch.int32)
        words, kernel = x.view(torch.int32), few_tokens_int8
        constants: dict[str, Any] = {"ASM": asm}
    else:
        launch = many_launch(tokens, rows, columns, least_u=32)
        out = x.new_empty((1, tokens, rows), dtype=torch.int32)
        words, kernel, constants = x, many_tokens_int8, {}
    if tokens:
        kernel[launch.grid](
            words,
            codes,
            out,
            tokens,
            rows,
            K=columns,
            **constants,
            **launch.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    total = out.sum(0, dtype=torch.int32) if len(out) > 1 else out[0]
    row_scale = scale.flatten()[:rows]
    return total.to(torch.float32) * x_scale * row_scale
