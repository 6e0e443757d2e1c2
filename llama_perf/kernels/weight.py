"""A weight as the fused kernels take it: its tensors and how they are decoded.

Knows neither torchao nor Triton: the numbers are those of the kernels' constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

PLAIN, CODES, SPARSE = 0, 1, 2
"""Floats (N, K); codes of `packing`; the kept codes of `sparse_weight`."""
UNSIGNED, INT8, FP6, FLOAT8 = 0, 1, 2, 3
"""What a code is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A weight (rows, columns): `codes` are the floats themselves where it is plain.

    `decode` is what a code is, `group` the columns that share a scale, 0 for all, and
    `zero_kind` one of `grouped_weight`, 0 for none. With `dynamic` the activations are
    rounded to int8, each token with its own scale.
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
        """What two weights that one kernel multiplies must have in common."""
        types = (self.codes.dtype, self.scale.dtype, self.zero.dtype)
        shape = (self.rows, self.columns, self.codes.shape)
        how = (self.format, self.bits, self.decode, self.group, self.zero_kind)
        return (*types, *shape, *how, self.dynamic)


@runtime_checkable
class Packable(Protocol):
    """A quantized weight that may have a form for the fused kernels."""

    def packed(self) -> Packed | None:
        """The weight as the fused kernels take it; None where they do not."""

    def laid_out_for(self, device: torch.device) -> Packable:
        """The same weight, not moved, in the layout that `device` multiplies."""


def plain(weight: Tensor) -> Packed:
    """A weight of floats, (N, K)."""
    rows, columns = weight.shape
    weight = weight.detach().contiguous()
    return Packed(
        rows=rows,
        columns=columns,
        codes=weight,
        scale=weight,
        zero=weight,
        format=PLAIN,
        bits=weight.element_size() * 8,
    )
