"""The weights with a scale and a zero for each group along K."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llama_perf.kernels.grouped import dequantized, grouped_weight, packed_weight
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import PackedTensor


class GroupedWeight(PackedTensor):
    """Words of codes (B, W, 16), 16-bit scales (B, G, 16), and zeros.

    A subclass says in `bits` how many a code has, and in `zero_kind` how
    `llama_perf.kernels.grouped` reads a zero.
    """

    tensor_data_names: ClassVar = ["codes", "scale", "zero"]
    zero: Tensor
    bits: int
    zero_kind: ClassVar[int]

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        parts = (self.codes, self.scale, self.zero)
        return grouped_weight(x, *parts, self.rows, self.bits, self.zero_kind)

    def packed(self) -> Packed:
        """See `PackedTensor.packed`."""
        parts = (self.codes, self.scale, self.zero, self.rows, self.columns)
        return packed_weight(*parts, bits=self.bits, kind=self.zero_kind)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        return dequantized(self.packed())


def in_groups(weight: Tensor, group_size: int | None) -> Tensor:
    """float32 (N, G, group size) of a weight (N, K)."""
    assert group_size is not None, "a scheme without a group size"
    groups: Tensor = weight.detach().float().unflatten(1, (-1, group_size))
    return groups
