"""A weight as the kernels on CUDA take it: its tensors and how they are decoded.

Knows neither torchao nor Triton: the numbers are those of the kernels' constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

FLOATS, CODES, SPARSE = 0, 1, 2
"""A weight's format: floats (N, K); codes of `packing`; the codes of `sparse`."""
UNSIGNED, INT8, FP6, FLOAT8 = 0, 1, 2, 3
"""How a code is decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A weight (rows, columns); `codes` of the format FLOATS are the floats themselves.

    `group` is how many columns share a scale, 0 for all of a row. `zero_kind` is a kind
    of zero of `grouped`, 0 for none. With `dynamic` the activations are rounded to
    int8, each token with its own scale.
    """

    rows: int
    columns: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    format: int = CODES
    bits: int = 8
    decode: int = UNSIGNED
    group: int = 0
    zero_kind: int = 0
    dynamic: bool = False

    @property
    def layout(self) -> tuple[object, ...]:
        """All that two weights which one kernel multiplies must have in common."""
        types = (self.codes.dtype, self.scale.dtype, self.zero.dtype)
        shape = (self.rows, self.columns, self.codes.shape)
        decoding = (self.format, self.bits, self.decode, self.group, self.zero_kind)
        return (*types, *shape, *decoding, self.dynamic)


@runtime_checkable
class Packable(Protocol):
    """A quantized weight that may have a form for the fused kernels."""

    def packed(self) -> Packed | None:
        """The weight as the fused kernels take it; None where they do not."""

    def laid_out_for(self, device: torch.device) -> Packable:
        """The same weight, not moved, in the layout that `device` multiplies."""


def of_floats(weight: Tensor) -> Packed:
    """A weight of floats, (N, K)."""
    rows, columns = weight.shape
    weight = weight.detach().contiguous()
    return Packed(
        rows=rows,
        columns=columns,
        codes=weight,
        scale=weight,
        zero=weight,
        format=FLOATS,
        bits=weight.element_size() * 8,
    )
