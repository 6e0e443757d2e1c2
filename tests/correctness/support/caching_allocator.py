"""The rules of CUDA's caching allocator, replayed: what stays reserved, without a card.

Blocks are rounded to 512 bytes. Those up to 1 MB come from segments of 2 MB, those
below 10 MB from segments of 20 MB, larger ones from segments of their own size, rounded
to 2 MB. A block is the smallest free one that fits; what it leaves is split off where
it is 512 bytes, of a large one more than 1 MB; free neighbours are merged; a segment is
given back whole. Each memory pool has segments of its own. After
c10/cuda/CUDACachingAllocator.cpp of torch 2.11.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama_perf.llama.memory_segments import inner_tensors

MB = 1 << 20


class Event(NamedTuple):
    """An allocation of `size` bytes in `pool`, or, where that is 0, the end of one."""

    key: Hashable
    size: int
    pool: int


class Recorder(TorchDispatchMode):
    """While active, notes the storages on `device` that operators make and drop."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.pool = 0
        self._device, self._count = device, 0
        self._seen: dict[int, object] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                for plain in inner_tensors(leaf):
                    self._note(plain)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self._device.type:
            return
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._seen or size == 0:
            return
        self._count += 1
        key = self._count
        self.events.append(Event(key=key, size=size, pool=self.pool))

        def gone(_reference: object) -> None:
            del self._seen[address]
            self.events.append(Event(key=key, size=0, pool=0))

        self._seen[address] = weakref.ref(storage, gone)


@dataclass(eq=False)
class Block:
    size: int
    key: Hashable = None


@dataclass(eq=False)
class Segment:
    small: bool
    pool: int
    blocks: list[Block]


class CachingAllocator:
    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.asked: dict[Hashable, int] = {}
        self._held: dict[Hashable, tuple[Segment, Block]] = {}
        self.peak = 0

    @property
    def reserved(self) -> int:
        return sum(block.size for each in self.segments for block in each.blocks)

    @property
    def live(self) -> int:
        """Bytes that were asked for, without any rounding."""
        return sum(self.asked.values())

    def play(self, event: Event, key: Hashable) -> None:
        if event.size:
            self._allocate(key, event.size, event.pool)
        elif key in self._held:
            self._free(key)

    def empty_cache(self) -> None:
        used = {id(segment) for segment, _ in self._held.values()}
        self.segments = [each for each in self.segments if id(each) in used]

    def _allocate(self, key: Hashable, asked: int, pool: int) -> None:
        size = max(512, -(-asked // 512) * 512)
        small = size <= MB
        fitting = [
            (block.size, number, segment, block)
            for number, segment in enumerate(self.segments)
            if (segment.small, segment.pool) == (small, pool)
            for block in segment.blocks
            if block.key is None and block.size >= size
        ]
        if fitting:
            _, _, segment, block = min(fitting, key=lambda each: each[:2])
        else:
            block = Block(2 * MB if small else 20 * MB)
            if size >= 10 * MB:
                block.size = -(-size // (2 * MB)) * 2 * MB
            segment = Segment(small=small, pool=pool, blocks=[block])
            self.segments.append(segment)
            self.peak = max(self.peak, self.reserved)
        rest = block.size - size
        if rest >= 512 if small else rest > MB:
            block.size = size
            segment.blocks.insert(segment.blocks.index(block) + 1, Block(rest))
        block.key = key
        self.asked[key] = asked
        self._held[key] = segment, block

    def _free(self, key: Hashable) -> None:
        segment, block = self._held.pop(key)
        del self.asked[key]
        block.key = None
        blocks = segment.blocks
        place = blocks.index(block)
        for beside in (place + 1, place - 1):
            if 0 <= beside < len(blocks) and blocks[beside].key is None:
                block.size += blocks.pop(beside).size
