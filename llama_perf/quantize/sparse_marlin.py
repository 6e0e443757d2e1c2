"""sparse-marlin: 2:4 pruning along K, symmetric int4, one scale for each group of 128.

Of every four weights along K the two of largest magnitude are kept, w = (c - 8) * s
with codes c of 0 to 15 and s in 16 bits by least squares: 4 bits and a position of 2
bits for each kept weight, 3.125 bits a weight with its share of the scale. K is a
multiple of 4, the last group may be shorter. A weight that is 2:4 already loses
nothing to pruning. The pattern is that of Mishra et al. (2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.sparse import (
    BITS,
    GROUP,
    MIDDLE,
    QUAD,
    dequantized,
    packed_weight,
    sparse_weight,
)
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import NativeConfig, PackedTensor
from llama_perf.quantize.scale_search import scale_dtype, symmetric_scale


@dataclass(frozen=True)
class SparseMarlinConfig(NativeConfig, families=("sparse-marlin",)):
    """Config of the native sparse-marlin for torchao's `quantize_`."""

    scheme: ClassVar = "sparse-marlin"

    def check_columns(self, columns: int, *, where: str = "the weight") -> None:
        """See `NativeConfig.check_columns`."""
        check_quads(columns, name=self.scheme, where=where)

    def pack(self, weight: Tensor) -> SparseMarlinWeight:
        """See `NativeConfig.pack`."""
        return SparseMarlinWeight.from_float(weight)


class SparseMarlinWeight(PackedTensor):
    """Words (B, W, 16) in planes of 4 and 2 bits, 16-bit scales (B, G, 16)."""

    tensor_data_names: ClassVar = ["codes", "scale"]
    codes: Tensor
    scale: Tensor

    @classmethod
    def from_float(cls, weight: Tensor) -> SparseMarlinWeight:
        """Prune and quantize a weight (rows, columns)."""
        wide = weight.detach().float()
        values, places = _keep_two(wide)
        size = GROUP // 2
        padded = F.pad(values, (0, -values.shape[1] % size))
        groups = padded.unflatten(1, (-1, size))
        dtype = scale_dtype(groups)
        scale = symmetric_scale(groups, -MIDDLE, MIDDLE - 1, dtype)
        codes = torch.round(groups / scale).clamp(-MIDDLE, MIDDLE - 1) + MIDDLE
        codes = codes.flatten(1)[:, : values.shape[1]].to(torch.uint8)
        return cls(
            pack(codes | (places << 4), BITS),
            to_lanes(scale.squeeze(2).to(dtype)),
            *weight.shape,
            weight.dtype,
        )

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        return sparse_weight(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `PackedTensor.packed`."""
        return packed_weight(self.rows, self.columns, self.codes, self.scale)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        return dequantized(self.codes, self.scale, self.rows, self.columns)


def prune_2_4(weight: Tensor) -> Tensor:
    """`weight` (rows, columns) with the two least of every four along K set to 0.

    Of equal magnitudes the first are kept. Raises SpecError where K is no multiple
    of 4.
    """
    check_quads(weight.shape[1], name="sparse-marlin")
    quads = weight.unflatten(1, (-1, QUAD))
    masks = torch.stack(_kept_masks(quads), dim=2)
    return torch.where(masks, quads, 0.0).to(weight.dtype).flatten(1)


def check_quads(columns: int, *, name: str, where: str = "the weight") -> None:
    """Raise SpecError unless K of `where` is a multiple of 4."""
    if columns % QUAD:
        raise SpecError(
            "quantization",
            name,
            f"2:4 pruning takes weights in fours: K = {columns} of {where} "
            "must be a multiple of 4",
        )


def _kept_masks(quads: Tensor) -> list[Tensor]:
    """For each place of a quad (N, Q, 4) whether it is kept, bool (N, Q)."""
    sizes = quads.abs().unbind(2)
    masks = []
    for place, size in enumerate(sizes):
        larger = [
            other >= size if index < place else other > size
            for index, other in enumerate(sizes)
            if index != place
        ]
        count = sum(is_larger.to(torch.uint8) for is_larger in larger)
        assert isinstance(count, Tensor), "a quad of one"
        masks.append(count < 2)
    return masks


def _keep_two(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The kept values of (N, K) and their places in their quads, uint8: (N, K / 2)."""
    quads = weight.unflatten(1, (-1, QUAD))
    w0, w1, w2, w3 = quads.unbind(2)
    is0, is1, is2, is3 = _kept_masks(quads)
    # The first kept is never at place 3, nor the second at place 0.
    first = torch.where(is0, w0, torch.where(is1, w1, w2))
    second = torch.where(is3, w3, torch.where(is2, w2, w1))
    low = torch.where(is0, 0, torch.where(is1, 1, 2))
    high = torch.where(is3, 3, torch.where(is2, 2, 1))
    values = torch.stack((first, second), dim=2).flatten(1)
    return values, torch.stack((low, high), dim=2).flatten(1).to(torch.uint8)
