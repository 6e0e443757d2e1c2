"""Reads the int4 codes that torchao packs for CPUs; torchao has no function for it.

torch packs the codes for the vector instructions of the processor, in blocks of rows:
a byte holds the codes of two rows of a block, in the same column. Where each code lies
is found by packing its own position, digit by digit.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

# Rows that are unpacked at a time: a multiple of every processor's block, and few
# enough that what lies between stays in the processor's cache.
_STRETCH = 64


def is_opaque(weight: Tensor) -> bool:
    """Whether `weight` is packed so. Does not import torchao's prototypes."""
    return type(weight).__name__ == "Int4OpaqueTensor"


def dequantized(weight: Any) -> Tensor:
    """The float32 weight (N, K) of an `Int4OpaqueTensor`.

    Raises NotImplementedError for a layout that is not known.
    """
    if weight.act_mapping_type is not None or weight.act_pre_scale is not None:
        raise NotImplementedError("int4 weights with quantized or scaled activations")
    out = torch.empty(weight.shape)
    scales, zeros = weight.scale_and_zero.float().transpose(0, 1).unsqueeze(2).unbind(3)
    for first in range(0, len(out), _STRETCH):
        part = slice(first, first + _STRETCH)
        codes = _codes(weight.qdata[part])[_places(*out[part].shape)]
        groups = out[part].unflatten(1, (-1, weight.block_size[1]))
        groups.copy_(codes.view_as(groups)).sub_(8)
        groups.mul_(scales[part]).add_(zeros[part])
    return out


@cache
def _places(rows: int, columns: int) -> Tensor:
    """For each weight (rows, columns), row by row, which of the packed codes it has."""
    position = torch.arange(rows * columns, dtype=torch.int32).view(rows, columns)
    order = torch.zeros(rows * columns, dtype=torch.int64)
    for shift in range(0, 32, 4):
        digit = (position >> shift) & 15
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(digit, 1)
        order |= _codes(packed).long() << shift
    places = order.argsort()
    if not torch.equal(order[places], position.flatten().long()):
        raise NotImplementedError("an unknown layout of packed int4 weights")
    return places


def _codes(packed: Tensor) -> Tensor:
    """The two codes of each byte."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten()
