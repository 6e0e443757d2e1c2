"""Device memory for work of which little is kept, so that it can all be given back.

CUDA's caching allocator gives memory back in whole segments. A packed weight that is
cut out of a segment which its float32 temporaries left holds all of that segment:
quantizing a model of seven billion parameters so reserves a gigabyte that nobody uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# Of the allocator: what blocks are rounded to, and those that have segments apart.
_ROUNDED, _SMALL = 512, 1 << 20


class Aside:
    """Memory beside the rest: allocate in `work()`, then `keep()` what is to stay.

    On CUDA a memory pool, which is freed with this object; elsewhere nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.MemPool() if device.type == "cuda" else None

    def work(self) -> AbstractContextManager[None]:
        """Allocate in the pool."""
        if self._pool is None:
            return nullcontext()
        return torch.cuda.use_mem_pool(self._pool)

    def keep(self, module: nn.Module, *, room_for: int = 1) -> None:
        """Move the parameters of `module` out of the pool, one after another.

        First there is made room for `room_for` modules like it, 0 where there is some.
        """
        if self._pool is not None:
            move_out(module, room_for=room_for)


def move_out(module: nn.Module, *, room_for: int = 1) -> None:
    """Put each parameter of `module` into memory of its own, in room for several."""
    sizes = [
        plain.nbytes
        for parameter in module.parameters()
        for plain in plain_tensors(parameter)
    ]
    make_room(sizes * room_for, next(module.parameters()).device)
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            copy = parameter.detach().clone()
            setattr(child, name, nn.Parameter(copy, requires_grad=False))


def make_room(sizes: Iterable[int], device: torch.device) -> None:
    """Have one free segment for tensors of `sizes` bytes, which then take their parts.

    A segment for each is rounded up by as much as 2 MB, and two of 8 MB take 20.
    """
    if device.type == "cpu":
        return
    rounded = (-(-size // _ROUNDED) * _ROUNDED for size in sizes if size > _SMALL)
    torch.empty(sum(rounded), dtype=torch.uint8, device=device)


def plain_tensors(tensor: Any) -> Iterator[Tensor]:
    """`tensor`, or those that a quantized one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(tensor, name))
