"""A packed weight: its tensors, how they are decoded, and what is rounded before.

Knows neither torchao nor Triton: the numbers are those of the kernels' constants.
"""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from llama_perf.kernels import packing

FLOATS, CODES, SPARSE = 0, 1, 2
"""A weight's format: floats (N, K); codes of `packing`; the codes of `sparse`."""
UNSIGNED, INT8, FP6, FLOAT8 = 0, 1, 2, 3
"""How a code is decoded."""
SPARSE_GROUP = 128
"""Columns of a sparse weight that share a scale."""
PACKED, OFFSET = 2, 3
"""How a zero of `grouped` is kept."""
Activations = Literal["kept", "int8", "float8-row", "float8-tensor"]
"""Whether activations are rounded, and to what; each token, or all, with a scale."""


class Layout(NamedTuple):
    """What a kernel for every weight of a layout knows when it is compiled.

    Some fields of `Packed`, in the same order; with DYNAMIC x is rounded to int8.
    """

    K: int
    FORMAT: int = CODES
    BITS: int = 8
    DECODE: int = UNSIGNED
    GROUP: int = 0
    ZERO: int = 0
    DYNAMIC: bool = False

    @property
    def STORED(self) -> int:
        """Values that a row stores, half of them where it is sparse."""
        return self.K // 2 if self.FORMAT == SPARSE else self.K

    @property
    def UNITS(self) -> int:
        """Units of eight of them."""
        return packing.units(self.STORED)

    @property
    def WORDS(self) -> int:
        """Words of a row's codes."""
        return packing.words(self.BITS, self.STORED)

    @property
    def GROUPS(self) -> int:
        """Groups of a row, where a group has a scale."""
        return -(-self.K // (SPARSE_GROUP if self.FORMAT == SPARSE else self.GROUP))

    @property
    def TILED(self) -> bool:
        """Whether tensor cores multiply few tokens of 16 bits (`triton/tile_sums`)."""
        if self.FORMAT == FLOATS or self.DYNAMIC:
            return False
        if self.FORMAT == SPARSE or not self.GROUP:
            return True
        # Columns of half a word of the widest plane; 16 halves are one product.
        columns = 16 // packing.planes(self.BITS)[0]
        if self.GROUP % (16 * columns) == 0:
            return self.ZERO == PACKED or self.BITS == 4
        fits = self.GROUP in (8, 16, 32, 64) and self.GROUP % columns == 0
        return fits and self.ZERO == PACKED

    @property
    def ZEROS(self) -> "Layout":
        """That of packed zeros."""
        return Layout(self.GROUPS, BITS=self.BITS)


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight (rows, columns); `codes` of the format FLOATS are the floats themselves.

    `group` is how many columns share a scale, 0 for all of a row. `zero_kind` is a kind
    of zero of `grouped`, 0 for none: `zero` is then any tensor.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    rows: int
    columns: int
    format: int = CODES
    bits: int = 8
    decode: int = UNSIGNED
    group: int = 0
    zero_kind: int = 0
    _: KW_ONLY
    activations: Activations = "kept"

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero, in the order in which kernels take them."""
        return self.codes, self.scale, self.zero

    @property
    def numbers(self) -> list[int]:
        """The fields behind the tensors, but for what is done to activations."""
        return [self.rows, *self.layout[:-1]]

    @property
    def dynamic(self) -> bool:
        """Whether the activations are rounded to int8."""
        return self.activations == "int8"

    def on_tensor_cores(self, dtype: torch.dtype) -> bool:
        """Whether they multiply few tokens of `dtype`, which their peaks round."""
        return self.dynamic or (self.layout.TILED and dtype != torch.float32)

    @property
    def layout(self) -> Layout:
        """What kernels know of it."""
        codes = (self.format, self.bits, self.decode)
        return Layout(self.columns, *codes, self.group, self.zero_kind, self.dynamic)

    @property
    def kind(self) -> tuple[object, ...]:
        """All that two weights which one kernel multiplies must have in common."""
        types = [tensor.dtype for tensor in self.tensors]
        return (*types, self.codes.shape, *self.numbers, self.activations)

    def of(self, blocks: slice) -> "Packed":
        """Some blocks of sixteen rows."""
        codes, scale, zero = (tensor[blocks] for tensor in self.tensors)
        return replace(self, codes=codes, scale=scale, zero=zero)


@runtime_checkable
class Packable(Protocol):
    """A quantized weight."""

    def packed(self) -> Packed:
        """The weight as the kernels take it."""

    def laid_out_for(self, device: torch.device) -> "Packable":
        """The same weight, not moved, in the layout that `device` multiplies."""


def of_floats(weight: Tensor) -> Packed:
    """A weight of floats, (N, K)."""
    weight = weight.detach().contiguous()
    rows, columns = weight.shape
    bits = weight.element_size() * 8
    return Packed(weight, weight, weight, rows, columns, format=FLOATS, bits=bits)
