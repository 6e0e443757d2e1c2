"""The ranks that share a model: this process's place among them, what they exchange.

A rank is a process with a device of its own, on a CPU with cores of its own. The ranks
are torch.distributed's default group, NCCL on CUDA and gloo on a CPU; a process without
a group is the only rank. Every rank has to call the same functions in the same order.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rank:
    """A place among `count` ranks, counted from 0."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that replies for all."""
        return self.index == 0


ALONE = Rank()


def own_rank() -> Rank:
    """The place of this process."""
    if not dist.is_initialized():
        return ALONE
    return Rank(dist.get_rank(), dist.get_world_size())


def max_over_ranks(x: Tensor) -> Tensor:
    """The largest of every rank's `x`, value by value."""
    return reduced(x, "max")


def reduced(x: Tensor, operation: str) -> Tensor:
    """The "sum" or "max" of every rank's `x` by the group's library.

    It may be part of compiled code and of a captured graph. On the meta device there
    need be no ranks.
    """
    if x.is_meta:
        return torch.empty_like(x)
    functional = torch.ops._c10d_functional
    reduced = functional.all_reduce(x.contiguous(), operation, group_name())
    out: Tensor = functional.wait_tensor(reduced)
    return out


def gather_over_ranks(x: Tensor, count: int) -> Tensor:
    """Every rank's `x` (..., N) side by side, in the order of the `count` ranks.

    The result is (..., count * N), the same on all of them.
    """
    *shape, columns = x.shape
    if x.is_meta:
        return x.new_empty((*shape, count * columns))
    functional = torch.ops._c10d_functional
    flat = x.reshape(-1, columns)
    gathered = functional.all_gather_into_tensor(flat, count, group_name())
    gathered = functional.wait_tensor(gathered).view(count, -1, columns)
    out: Tensor = gathered.transpose(0, 1).reshape(*shape, count * columns)
    return out


def from_every_rank(value: T) -> list[T]:
    """The value of each rank, in their order: any that pickle takes."""
    values: list[Any] = [None] * own_rank().count
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def from_first_rank(value: T) -> T:
    """The first rank's value: any that pickle takes."""
    values = [value]
    if own_rank().count > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def group_name() -> str:
    """The name of the default group, by which operators find it."""
    name: str = dist.distributed_c10d._get_default_group().group_name
    return name
