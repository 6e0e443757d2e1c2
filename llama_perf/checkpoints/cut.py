"""Which part of a tensor is read: all of it, or the share of one of several ranks.

Of query, key and value a rank has the rows of its heads, of gate, up and the output
layer some rows, of the attention's output and of down some columns. Knows no format.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama_perf.devices.ranks import Rank
from llama_perf.llama.config import ModelConfig

Range = tuple[int, int]
"""The first one, and the one behind the last."""
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Some rows of a tensor, or some columns of a matrix. None: all of them."""

    rows: tuple[Range, ...] | None = None
    columns: Range | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a tensor."""
        return self.rows is None and self.columns is None

    def shape_of(self, whole: Shape) -> Shape:
        """The shape of this part of a tensor of shape `whole`."""
        shape = list(whole)
        for dim, ranges in enumerate((self.rows, self.columns and (self.columns,))):
            if ranges is not None:
                shape[dim] = sum(end - start for start, end in ranges)
        return tuple(shape)

    @property
    def indices(self) -> list[tuple[slice, ...]]:
        """The pieces of this part, one below the other, as indices of the tensor."""
        columns = () if self.columns is None else (slice(*self.columns),)
        ranges = [slice(None)]
        if self.rows is not None:
            ranges = [slice(*one_range) for one_range in self.rows]
        return [(rows, *columns) for rows in ranges]

    def of(self, tensor: Tensor) -> Tensor:
        """Take this part of a tensor: a view where it is in one piece."""
        pieces = [tensor[index] for index in self.indices]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def copied_from(self, tensor: Tensor) -> Tensor:
        """Take it in memory of its own; all of a tensor is the tensor itself."""
        if self.is_whole:
            return tensor
        return torch.cat([tensor[index] for index in self.indices])

    def within(self, dim: int, start: int, end: int) -> "Cut | None":
        """What it takes of one of several tensors that make up the whole.

        That one is from `start` to before `end` in dimension `dim`. None: nothing.
        """
        ranges = self.rows if dim == 0 else self.columns and (self.columns,)
        if ranges is None:
            return self
        clipped = tuple(
            (max(first, start) - start, min(last, end) - start)
            for first, last in ranges
            if first < end and last > start
        )
        if not clipped:
            return None
        return Cut(clipped, self.columns) if dim == 0 else Cut(self.rows, clipped[0])


WHOLE = Cut()


def cut_of_rank(name: str, whole: ModelConfig, rank: Rank) -> Cut:
    """What `rank` has of a tensor of a model of shape `whole`.

    A bias of a linear that is cut by columns is not cut.
    """
    linear, kind = linear_of(name)
    sizes = {**whole.linears, "output": (whole.vocab_size, whole.dim)}
    if rank.count == 1 or linear not in sizes:
        return WHOLE
    rows, columns = sizes[linear]
    if whole.of_rank(rank.count).cut_of(linear) == "columns":
        return WHOLE if kind == "bias" else Cut(columns=_part(0, columns, rank))
    sections = [rows]
    if linear == "attention.wqkv":
        heads = (whole.n_heads, whole.n_kv_heads, whole.n_kv_heads)
        sections = [count * whole.head_dim for count in heads]
    ranges, start = [], 0
    for size in sections:
        ranges.append(_part(start, size, rank))
        start += size
    return Cut(rows=tuple(ranges))


def linear_of(name: str) -> tuple[str, str]:
    """The linear that a tensor belongs to, without its layer, and what it is of it."""
    _, _, inner = name.split(".", 2) if name.startswith("layers.") else ("", "", name)
    linear, _, kind = inner.rpartition(".")
    return linear, kind


def _part(start: int, size: int, rank: Rank) -> Range:
    own = size // rank.count
    return start + rank.index * own, start + (rank.index + 1) * own
