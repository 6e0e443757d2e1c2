"""sparse-marlin: 2:4 pruning along K, symmetric int4, one scale for each group of 128.

Of every four weights along K the two of largest magnitude are kept, w = (c - 8) * s
with codes c of 0 to 15 and s in 16 bits by least squares: 4 bits and a position of 2
bits for each kept weight, 3.125 bits a weight with its share of the scale. K is a
multiple of 4, the last group may be shorter. A weight that is 2:4 already loses
nothing to pruning. The pattern is that of Mishra et al. (2021).
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.sparse import BITS, MIDDLE, QUAD
from llama_perf.kernels.weight import SPARSE, SPARSE_GROUP, Packed
from llama_perf.quantize.grouped import in_stretches, scale_dtype, symmetric_scale
from llama_perf.quantize.packed_tensor import NativeConfig, PackedTensor, check_shapes
from llama_perf.rows.schemes import Scheme


class SparseMarlinWeight(PackedTensor, families=("sparse-marlin",)):
    """Words (B, W, 16) in planes of 4 and 2 bits, 16-bit scales (B, G, 16)."""

    column_multiple = QUAD
    cut_multiple = SPARSE_GROUP

    @classmethod
    def from_float(
        cls, weight: Tensor, _scheme: Scheme, cut: str | None = None
    ) -> "SparseMarlinWeight":
        quads = weight.detach().float().unflatten(1, (-1, QUAD))
        values, places = (part.flatten(1) for part in _keep_two(quads))
        count, size = values.shape[1], SPARSE_GROUP // 2
        groups = F.pad(values, (0, -count % size)).unflatten(1, (-1, size))
        dtype = scale_dtype(groups, cut=cut)
        (scale,) = symmetric_scale(groups, -MIDDLE, dtype)
        codes = torch.round(groups / scale).clamp(-MIDDLE, MIDDLE - 1)
        codes = codes.flatten(1)[:, :count].to(torch.int8).view(torch.uint8) & 15
        words = pack(codes | (places.to(torch.uint8) << 4), BITS)
        scales = to_lanes(scale.squeeze(2).to(dtype))
        return cls(words, scales, *weight.shape, weight.dtype)

    def packed(self) -> Packed:
        parts = (self.codes, self.scale, self.scale, self.rows, self.columns)
        return Packed(*parts, format=SPARSE, bits=BITS)


def prune_2_4(weight: Tensor) -> Tensor:
    """`weight` (rows, columns) with the two least of every four along K set to 0.

    Of equal magnitudes the first are kept. Raises SpecError where K is no multiple
    of 4.
    """
    scheme = Scheme.parse("sparse-marlin")
    config = NativeConfig(scheme, SparseMarlinWeight)
    check_shapes(scheme, config, {"the weight": weight.shape}, device=weight.device)
    quads = weight.unflatten(1, (-1, QUAD))
    values, places = _keep_two(quads)
    return torch.zeros_like(quads).scatter(2, places, values).flatten(1)


@in_stretches
def _keep_two(quads: Tensor) -> tuple[Tensor, ...]:
    """Of quads (N, Q, 4) what is kept and its places, the later first: (N, Q, 2)."""
    sizes = quads.abs().unbind(2)
    # How many of its quad are larger, or as large and before it: sorting quads is slow.
    ranks = [torch.zeros_like(size, dtype=torch.uint8) for size in sizes]
    for before, after in combinations(range(QUAD), 2):
        wins = sizes[before] >= sizes[after]
        ranks[after] += wins
        ranks[before] += ~wins
    kept = [rank < 2 for rank in ranks]
    places = torch.zeros((*quads.shape[:2], 2), dtype=torch.int64, device=quads.device)
    last, first = places.unbind(2)
    # Two are kept, the first at 0, 1 or 2, the last at 1, 2 or 3.
    first += ~kept[0]
    first += ~(kept[0] | kept[1])
    last += 1
    last += kept[2] | kept[3]
    last += kept[3]
    return quads.gather(2, places), places
