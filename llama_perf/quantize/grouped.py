"""Schemes with a scale and a zero for each group along K: their weights and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.kernels.grouped import dequantized, grouped_weight, packed_weight
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import NativeConfig, PackedTensor
from llama_perf.rows.schemes import Scheme


class GroupedWeight(PackedTensor):
    """Words of codes (B, W, 16), 16-bit scales (B, G, 16), and zeros.

    A subclass says in `bits` how many a code has.
    """

    tensor_data_names: ClassVar = ["codes", "scale", "zero"]
    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def zero_kind(self) -> int:
        """How `llama_perf.kernels.grouped` reads a zero."""
        raise NotImplementedError

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        parts = (self.codes, self.scale, self.zero)
        return grouped_weight(x, *parts, self.rows, self.bits, self.zero_kind)

    def packed(self) -> Packed:
        """See `PackedTensor.packed`."""
        parts = (self.rows, self.columns, self.codes, self.scale, self.zero)
        return packed_weight(*parts, bits=self.bits, kind=self.zero_kind)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        return dequantized(self.packed())


@dataclass(frozen=True)
class GroupedConfig(NativeConfig):
    """Base of the configs of these schemes."""

    group_size: int = 64
    hqq: bool = False

    def __post_init__(self) -> None:
        if type(self.group_size) is not int or self.group_size < 1:
            allowed = "allowed: a whole number, 1 or more"
            raise SpecError("group_size", self.group_size, allowed)
        if type(self.hqq) is not bool:
            raise SpecError("hqq", self.hqq, "allowed: True, False")

    @classmethod
    def build(
        cls, scheme: Scheme, _device: torch.device, _dtype: torch.dtype
    ) -> GroupedConfig:
        """See `NativeConfig.build`."""
        assert scheme.group_size is not None, f"{scheme.name} has no group size"
        return cls(group_size=scheme.group_size, hqq=scheme.hqq)

    def check_columns(self, columns: int, *, where: str = "the weight") -> None:
        """See `NativeConfig.check_columns`."""
        check_group(columns, self.group_size, scheme=self.scheme, where=where)


def check_group(
    columns: int,
    group_size: int,
    *,
    scheme: str,
    where: str,
    allowed: str | None = None,
) -> None:
    """Raise SpecError unless the group size divides K of the weight called `where`.

    `allowed` says which sizes do, where more than this weight decides.
    """
    if columns % group_size:
        raise SpecError(
            "quantization",
            scheme,
            f"the group size {group_size} must divide K = {columns} of {where};"
            f" {allowed or fitting_groups(columns)}",
        )


def fitting_groups(columns: int, sizes: Sequence[int] | None = None) -> str:
    """Which group sizes divide K, in words; only those of `sizes` if given."""
    candidates = range(1, columns + 1) if sizes is None else sizes
    fitting = [str(size) for size in candidates if columns % size == 0]
    if fitting:
        return f"allowed: {', '.join(fitting)}"
    return f"none of {', '.join(map(str, candidates))} does"


def in_groups(weight: Tensor, group_size: int) -> Tensor:
    """float32 (N, G, group size) of a weight (N, K)."""
    groups: Tensor = weight.detach().float().unflatten(1, (-1, group_size))
    return groups
