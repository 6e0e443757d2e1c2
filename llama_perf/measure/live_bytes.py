"""The storages that operators make, until they are gone: tracemalloc sees none of them.

Also of those on the meta device. Knows storages, not what they are for; what an
operator allocates inside and frees again is not seen, but told by the caller.
"""

import weakref
from collections.abc import Iterable, Mapping
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama_perf.llama.memory_segments import inner_tensors


class LiveBytes(TorchDispatchMode):
    """While active, counts storages on devices of type `device`: bytes `now`, `peak`.

    Those of `known` are left out; another one that existed before counts once an
    operator hands it out again. `inside` has the bytes that an operator takes while it
    runs, in addition to its result.
    """

    def __init__(
        self, device: str, known: Iterable[Tensor] = (), inside: Mapping[Any, int] = {}
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._device, self._inside, self._numbers = device, inside, count()
        parts = chain.from_iterable(map(inner_tensors, known))
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in parts)

    def changed(self, number: int, size: int) -> None:
        """Storage `number` was made, of so many bytes, or is gone: negative."""
        del number
        self.now += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device:
                for tensor in inner_tensors(leaf):
                    self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.now + self._inside.get(func, 0))
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        if size and storage not in self._seen:
            number = next(self._numbers)
            self._seen.add(storage)
            self.changed(number, size)
            weakref.finalize(storage, self.changed, number, -size)
