"""The rules of CUDA's caching allocator, replayed: what stays reserved, without a card.

Blocks are rounded to 512 bytes. Those up to 1 MB come from segments of 2 MB, those
below 10 MB from segments of 20 MB, larger ones from segments of their own size, rounded
to 2 MB. A block is the smallest free one that fits; what it leaves is split off where
it is 512 bytes, of a large one more than 1 MB; free neighbours are merged; a segment is
given back whole. Each memory pool has segments of its own. After
c10/cuda/CUDACachingAllocator.cpp of torch 2.11.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tests.correctness.support.live_bytes import Storages

MB = 1 << 20


class Event(NamedTuple):
    """An allocation of `size` bytes in `pool`, or, where that is 0, the end of one."""

    key: Hashable
    size: int
    pool: int


class Recorder(Storages):
    """While active, notes the storages on `device` that operators make and drop."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device.type)
        self.events: list[Event] = []
        self.pool = 0

    def changed(self, number: int, size: int) -> None:
        pool = self.pool if size > 0 else 0
        self.events.append(Event(key=number, size=max(size, 0), pool=pool))


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
        self._allocated: dict[Hashable, tuple[Segment, Block, int]] = {}
        self.peak = 0

    @property
    def reserved(self) -> int:
        return sum(block.size for segment in self.segments for block in segment.blocks)

    @property
    def live(self) -> int:
        """Bytes that were asked for, without any rounding."""
        return sum(asked for _, _, asked in self._allocated.values())

    def play(self, event: Event, key: Hashable) -> None:
        if event.size:
            self._allocate(key, event.size, event.pool)
        elif key in self._allocated:
            self._free(key)

    def empty_cache(self) -> None:
        used = {id(segment) for segment, _, _ in self._allocated.values()}
        self.segments = [segment for segment in self.segments if id(segment) in used]

    def _allocate(self, key: Hashable, asked: int, pool: int) -> None:
        size = max(512, -(-asked // 512) * 512)
        small = size <= MB
        fitting = [
            (segment, block)
            for segment in self.segments
            if (segment.small, segment.pool) == (small, pool)
            for block in segment.blocks
            if block.key is None and block.size >= size
        ]
        if fitting:
            segment, block = min(fitting, key=lambda pair: pair[1].size)
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
        self._allocated[key] = segment, block, asked

    def _free(self, key: Hashable) -> None:
        segment, freed, _ = self._allocated.pop(key)
        freed.key = None
        merged: list[Block] = []
        for block in segment.blocks:
            if merged and merged[-1].key is None and block.key is None:
                merged[-1].size += block.size
            else:
                merged.append(block)
        segment.blocks = merged
