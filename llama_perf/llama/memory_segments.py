"""Tensors in memory segments of their own, so that CUDA can free all others.

CUDA's caching allocator returns memory only in whole segments. A packed weight that
lies in a segment together with the float32 temporaries of its quantization keeps that
whole segment: a quantized model of seven billion parameters would reserve one
gigabyte that nobody uses.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

# The allocator rounds blocks up to 512 bytes, and keeps those of at most 1 MB in
# segments apart.
_BLOCK_BYTES, _SMALL_BYTES = 512, 1 << 20


class ScratchPool:
    """On CUDA a memory pool for temporaries, freed with this object; else nothing.

    Allocate in `allocate()`, then `move_out()` the rest.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.MemPool() if device.type == "cuda" else None

    def allocate(self) -> AbstractContextManager[None]:
        """Allocate in the pool."""
        pool = self._pool
        return nullcontext() if pool is None else torch.cuda.use_mem_pool(pool)

    def move_out(self, module: nn.Module, *, room_for: int = 1) -> None:
        """Move the parameters of `module` out of the pool, one after another.

        `room_for` modules like it are given room first; 0 where they have it already.
        """
        if self._pool is not None:
            move_to_own_memory(module, room_for=room_for)


def move_to_own_memory(module: nn.Module, *, room_for: int = 1) -> None:
    """Copy each parameter of `module` into new memory, side by side."""
    tensors = chain.from_iterable(map(inner_tensors, module.parameters()))
    sizes = [tensor.nbytes for tensor in tensors]
    reserve_segment(sizes * room_for, next(module.parameters()).device)
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            copy = parameter.detach().clone()
            setattr(child, name, nn.Parameter(copy, requires_grad=False))


def reserve_segment(sizes_bytes: Iterable[int], device: torch.device) -> None:
    """Reserve one free segment that tensors of these sizes will share.

    Allocated one by one, each would have a segment that is rounded up by as much as
    2 MB; two tensors of 8 MB would take 20 MB.
    """
    blocks = (-(-size // _BLOCK_BYTES) for size in sizes_bytes if size > _SMALL_BYTES)
    if device.type != "cpu":
        torch.empty(sum(blocks) * _BLOCK_BYTES, dtype=torch.uint8, device=device)


def inner_tensors(tensor: Any) -> Iterator[Tensor]:
    """`tensor` itself, or those that a quantized tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return iter((tensor,))
    parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return chain.from_iterable(map(inner_tensors, parts))
