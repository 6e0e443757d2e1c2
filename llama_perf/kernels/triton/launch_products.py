"""Launches of the Triton kernels: block sizes, splits of K, and the operators' calls.

Knows no torchao.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton import next_power_of_2

from llama_perf.kernels.packing import sparse_values, units
from llama_perf.kernels.triton.codes import FLOAT8
from llama_perf.kernels.triton.dependent_launch import multiprocessors
from llama_perf.kernels.triton.int8_dynamic import few_tokens_int8, many_tokens_int8
from llama_perf.kernels.triton.launch import INTERPRETED, Launch, run
from llama_perf.kernels.triton.sparse import few_tokens_sparse, many_tokens_sparse
from llama_perf.kernels.triton.weight_only import few_tokens, many_tokens
from llama_perf.kernels.weight import SPARSE, Packed

FEW = 8
# Programs for each of the card's processors, which they fill several times over.
_PROGRAMS = 4
_BLOCK_N = 16


def few_launch(
    tokens: int, rows: int, columns: int, *, max_units: int = 128, min_units: int = 16
) -> Launch:
    """A GEMV of at most eight tokens: about 8 KB of codes in flight a program."""
    padded = next_power_of_2(tokens)
    block_u = max(max_units // padded, min_units)
    steps = -(-units(columns) // block_u)
    blocks = -(-rows // _BLOCK_N)
    splits = min(max(_PROGRAMS * multiprocessors() // blocks, 1), steps)
    split_steps = -(-steps // splits)
    tile = {"BLOCK_U": block_u, "BLOCK_N": _BLOCK_N}
    return Launch(
        grid=(blocks, -(-steps // split_steps)),
        constants={"TOKENS": padded, "STEPS": split_steps, **tile},
    )


def many_launch(tokens: int, rows: int, columns: int, *, min_units: int = 16) -> Launch:
    """A tiled product on tensor cores."""
    block_m = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    if min_units > 16:
        # A larger tile of int32 sums spills registers on sm_80.
        block_m = min(block_m, 32)
    tile = {"BLOCK_M": block_m, "BLOCK_U": min_units, "BLOCK_N": 64}
    return Launch(
        grid=(-(-rows // 64), -(-tokens // block_m)),
        constants={**tile, "STEPS": -(-units(columns) // min_units)},
    )


def stored_columns(weight: Packed) -> int:
    """Columns in the units of a kernel, which of a sparse weight are stored values."""
    sparse = weight.format == SPARSE
    return sparse_values(weight.columns) if sparse else weight.columns


def max_units(weight: Packed, tokens: int) -> int:
    """Units that a program of few tokens takes at a time."""
    # A unit of a sparse weight takes twice as many x as others: half as many units fill
    # as many registers, and twice as many programs run at a time. Of several tokens and
    # 128 units of float8 the sums spill registers on sm_90.
    several_float8 = weight.decode == FLOAT8.value and tokens > 1
    return 64 if weight.format == SPARSE or several_float8 else 128


def _launch(weight: Packed, tokens: int) -> Launch:
    rows, columns = weight.rows, stored_columns(weight)
    if tokens <= FEW:
        units_at_once = max_units(weight, tokens)
        return few_launch(max(tokens, 1), rows, columns, max_units=units_at_once)
    if weight.format != SPARSE or tokens <= 16:
        return many_launch(tokens, rows, columns)
    # Tiles of 64 tokens with eight warps: those of 32 spill registers with float32
    # activations, and those of 64 with four warps do on sm_80.
    return replace(many_launch(max(tokens, 64), rows, columns), warps=8)


def product(x: Tensor, weight: Packed, *, dtype: torch.dtype | None = None) -> Tensor:
    """`x` (M, K) times the transposed weight, (M, rows), in `dtype` or in x's.

    The weight is one of codes or a sparse one; its activations are not rounded.
    """
    dtype, tokens = dtype or x.dtype, len(x)
    few, constants = tokens <= FEW, weight.constants
    tensors: tuple[Tensor, ...] = weight.tensors
    if weight.format == SPARSE:
        kernel = few_tokens_sparse if few else many_tokens_sparse
        constants = {name: constants[name] for name in ("K", "WORDS")}
        tensors = tensors[:2]
    else:
        kernel = few_tokens if few else many_tokens
    if not few:
        constants["WIDE"] = INTERPRETED
    launch = _launch(weight, tokens)
    splits = launch.splits if few else 1
    shape = (splits, tokens, weight.rows)
    out = x.new_empty(shape, dtype=torch.float32 if splits > 1 else dtype)
    if tokens:
        arguments = (x.contiguous(), *tensors, out, tokens, weight.rows)
        run(kernel, launch, arguments, **constants)
    return out.sum(0).to(dtype) if splits > 1 else out[0]


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
    constants: dict[str, Any] = {"K": columns}
    if tokens <= FEW:
        launch = few_launch(max(tokens, 1), rows, columns)
        splits, x, kernel = launch.splits, x.view(torch.int32), few_tokens_int8
        constants["ASM"] = asm
    else:
        launch = many_launch(tokens, rows, columns, min_units=32)
        splits, kernel = 1, many_tokens_int8
    out = x.new_empty((splits, tokens, rows), dtype=torch.int32)
    if tokens:
        run(kernel, launch, (x, codes, out, tokens, rows), **constants)
    total = out.sum(0, dtype=torch.int32) if splits > 1 else out[0]
    return total.to(torch.float32) * x_scale * scale.flatten()[:rows]
