"""A weight as the kernels on CUDA take it: its tensors and how they are decoded.

Knows neither torchao nor Triton: the numbers are those of the kernels' constants.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

FLOATS, CODES, SPARSE = 0, 1, 2
"""A weight's format: floats (N, K); codes of `packing`; the codes of `sparse`."""
UNSIGNED, INT8, FP6, FLOAT8 = 0, 1, 2, 3
"""How a code is decoded."""


@dataclass(frozen=True, slots=True)
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
    _: KW_ONLY
    format: int = CODES
    bits: int = 8
    decode: int = UNSIGNED
    group: int = 0
    zero_kind: int = 0
    dynamic: bool = False

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero, in the order in which kernels take them."""
        return self.codes, self.scale, self.zero

    @property
    def constants(self) -> dict[str, int]:
        """What a kernel for every weight of this layout knows when it is compiled."""
        words = 0 if self.format == FLOATS else self.codes.shape[1]
        groups = {"GROUP": self.group, "ZERO": self.zero_kind}
        codes = {"WORDS": words, "BITS": self.bits, "DECODE": self.decode}
        return {"K": self.columns, **codes, **groups}

    @property
    def layout(self) -> tuple[object, ...]:
        """All that two weights which one kernel multiplies must have in common."""
        types = [tensor.dtype for tensor in self.tensors]
        shape = (self.rows, self.codes.shape, self.format, self.dynamic)
        return (*types, *shape, *self.constants.values())


@runtime_checkable
class Packable(Protocol):
    """A quantized weight that may have a form for the fused kernels."""

    def packed(self) -> Packed | None:
        """The weight as the fused kernels take it; None where they do not."""

    def laid_out_for(self, device: torch.device) -> "Packable":
        """The same weight, not moved, in the layout that `device` multiplies."""


def of_floats(weight: Tensor) -> Packed:
    """A weight of floats, (N, K)."""
    rows, columns = weight.shape
    weight = weight.detach().contiguous()
    bits = weight.element_size() * 8
    return Packed(rows, columns, weight, weight, weight, format=FLOATS, bits=bits)
