"""Launches of the Triton kernels: block sizes, splits of K, and the operators' calls.

Knows no torchao.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from triton import next_power_of_2

from llama_perf.kernels.launch_table import Choice
from llama_perf.kernels.packing import LANES, UNIT, planes
from llama_perf.kernels.triton.launch import Launch, aligned, multiprocessors, run
from llama_perf.kernels.triton.products import (
    few_tokens,
    few_tokens_int8,
    many_tokens,
    many_tokens_int8,
)
from llama_perf.kernels.weight import FLOAT8, FLOATS, SPARSE, Packed

# The most tokens of a fused kernel, and of a product without tensor cores.
FEW = 8
# The most of a product on tensor cores that is not fused.
FEW_ON_TENSOR_CORES = 16
# Programs for each of the card's processors, which they fill several times over.
_PROGRAMS = 4
# Rows of a program on tensor cores: they share what is done for x. For more than eight
# tokens that is two thirds of the instructions with 32 rows, so 64 share it.
_ROWS, _MORE_ROWS = 32, 64


def most_few(weight: Packed, dtype: torch.dtype) -> int:
    """The most tokens that a product takes as few, where it is not fused."""
    # Codes of five bits spill registers with 16 tokens and 64 rows, and with 32 rows
    # they take as many instructions as tiles do.
    if weight.on_tensor_cores(dtype) and weight.bits != 5:
        return FEW_ON_TENSOR_CORES
    return FEW


def few_launch(
    weight: Packed,
    tokens: int,
    dtype: torch.dtype,
    *,
    weights: int = 1,
    fused: bool = False,
    head_width: int = 0,
    tuned: Choice | None = None,
) -> Launch:
    """A product of few tokens of `dtype` by one weight, or by two alike.

    As `tuned`, else by a rule. `head_width` is what a block of rows has to divide.
    """
    padded, block_n, registers = next_power_of_2(max(tokens, 1)), LANES, None
    programs = _PROGRAMS
    if weight.on_tensor_cores(dtype):
        # A product of eight words for each warp, or two: more of them share the work
        # for x, which takes registers, and more of them where x is cut to digits.
        sparse, stages = weight.format == SPARSE, 3
        products = 8 if padded == 1 or (padded == 2 and not sparse) else 4
        block_u = products * 32 // planes(weight.bits)[0]
        # int8 tokens are only loaded; of one bit, and of digits, more rows spill.
        narrow = weight.dynamic or weight.bits == 1 or sparse
        if padded > FEW and not narrow:
            block_n, programs = _MORE_ROWS, _PROGRAMS // 2
        elif head_width % _ROWS == 0:
            block_n = _ROWS
        # Left to itself the assembler spills a few bytes of these, below its own limit.
        if weight.group and block_n == _MORE_ROWS:
            registers = 255
        elif weight.dynamic:
            registers = 80
        elif weight.bits == 3:
            registers = 168
    else:
        most, least = 128, 16
        if weight.format == FLOATS:
            # Sixteen rows of 256 columns, in floats of two bytes, are 8 KB.
            most, least = 32, 4
        # A unit of a sparse weight takes twice as many x as others: half as many units
        # fill as many registers, and twice as many programs run at a time. Of several
        # tokens and 128 units of float8 the sums spill registers on sm_90, and in a
        # fused kernel those of units that each have a scale and a zero do on sm_80.
        elif (
            weight.format == SPARSE
            or (weight.decode == FLOAT8 and tokens > 1)
            or (fused and 0 < weight.group <= UNIT)
        ):
            most = 64
        block_u, stages = max(most // padded, least), 4
    blocks, warps = weights * -(-weight.rows // block_n), 4
    splits = programs * multiprocessors() // blocks
    if tuned is not None:
        block_u, splits = tuned.block_u, tuned.splits
        warps, stages = tuned.warps, tuned.stages
    steps = -(-weight.layout.UNITS // block_u)
    if tuned is None and block_n > LANES:
        # What a program does once costs as much as a step.
        splits = min(splits, steps // 2)
    split_steps = -(-steps // min(max(splits, 1), steps))
    tile = {"TOKENS": padded, "BLOCK_U": block_u, "BLOCK_N": block_n}
    return Launch(
        grid=(blocks, -(-steps // split_steps)),
        constants={"WEIGHT": weight.layout, **tile, "STEPS": split_steps},
        warps=warps,
        stages=stages,
        registers=registers,
    )


def many_launch(weight: Packed, tokens: int) -> Launch:
    """A tiled product on tensor cores."""
    # Of a sparse weight tiles of 64 tokens with eight warps: those of 32 spill with
    # float32 activations, and those of 64 with four warps do on sm_80, as does a larger
    # tile of int32 sums.
    wide = weight.format == SPARSE and tokens > 16
    largest = 32 if weight.dynamic or (tokens <= 32 and not wide) else 64
    padded, units = 16 if tokens <= 16 else largest, 32 if weight.dynamic else 16
    tile = {"TOKENS": padded, "BLOCK_U": units, "BLOCK_N": 64}
    steps = -(-weight.layout.UNITS // units)
    return Launch(
        grid=(-(-weight.rows // 64), -(-tokens // padded)),
        constants={"WEIGHT": weight.layout, **tile, "STEPS": steps},
        warps=8 if wide else 4,
    )


def product(
    x: Tensor, weight: Packed, dtype: torch.dtype, x_scale: Tensor | None = None
) -> Tensor:
    """See `products.packed_product`; the weight is one of codes or a sparse one."""
    if x_scale is not None:
        weight = replace(weight, activations="int8")
    tokens, few = len(x), len(x) <= most_few(weight, x.dtype)
    if x_scale is None:
        kernel, sums_dtype = few_tokens if few else many_tokens, torch.float32
        arguments: tuple[Tensor, ...] = (aligned(x), *weight.tensors)
    else:
        kernel, sums_dtype = few_tokens_int8 if few else many_tokens_int8, torch.int32
        if weight.columns % UNIT:
            # A token is as long as a row of codes.
            x = F.pad(x, (0, -weight.columns % UNIT))
        x = x.contiguous()
        arguments = (x, weight.codes)
    launch = few_launch(weight, tokens, x.dtype) if few else many_launch(weight, tokens)
    splits = launch.splits if few else 1
    sums_dtype = dtype if x_scale is None and splits == 1 else sums_dtype
    out = x.new_empty((splits, tokens, weight.rows), dtype=sums_dtype)
    if tokens:
        run(kernel, launch, (*arguments, out, tokens, weight.rows))
    total = out.sum(0, dtype=sums_dtype) if splits > 1 else out[0]
    if x_scale is None:
        return total.to(dtype)
    return total.to(dtype) * x_scale * weight.scale.flatten()[: weight.rows]
