"""The values of a GGUF file's tensors, all or some of them, in float32.

They are stored in blocks along a row, each quantized by itself; of a part only its
blocks are dequantized. Knows no names.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import ReaderTensor
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from llama_perf.checkpoints.cut import Cut, Range, Shape

_STRETCH = 1 << 20
"""Values of a part that are dequantized at a time, about."""


def values(tensor: ReaderTensor, cut: Cut) -> Tensor:
    """A part of a tensor."""
    data, kind = tensor.data, tensor.tensor_type
    shape: Shape = tuple(tensor.shape[::-1].tolist())
    if cut.is_whole:
        return torch.from_numpy(dequantized(data, kind))
    ranges, columns = cut.rows or ((0, shape[0]),), cut.columns or (0, shape[-1])
    part = torch.empty(cut.shape_of(shape))
    if len(shape) == 1:
        # Blocks lie along its only dimension.
        pieces = [_columns(data[None], kind, one_range)[0] for one_range in ranges]
        return torch.cat(pieces, out=part)
    step, filled = max(_STRETCH // shape[1], 1), 0
    for first, last in ranges:
        for start in range(first, last, step):
            rows = data[start : min(start + step, last)]
            part[filled : filled + len(rows)] = _columns(rows, kind, columns)
            filled += len(rows)
    return part


def _columns(
    rows: npt.NDArray[Any], kind: GGMLQuantizationType, columns: Range
) -> Tensor:
    """Some columns of stored rows; whole blocks are dequantized for them."""
    size, items = GGML_QUANT_SIZES[kind]
    if rows.dtype != np.uint8:
        items = 1
    (start, end), first = columns, columns[0] // size
    blocks = rows[:, first * items : -(-end // size) * items]
    made = torch.from_numpy(dequantized(np.ascontiguousarray(blocks), kind))
    return made[:, start - first * size : end - first * size]


def dequantized(data: npt.NDArray[Any], kind: GGMLQuantizationType) -> npt.NDArray[Any]:
    """The values of stored rows; raises NotImplementedError for some kinds."""
    # Damaged scales may be infinite; what is not finite is found where it is used.
    with np.errstate(all="ignore"):
        return dequantize(data, kind)
