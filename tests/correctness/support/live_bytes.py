"""Counting the bytes of live tensors, which tracemalloc does not see.

Also of those on the meta device. Knows storages, not what they are for; what an
operator allocates inside and frees again is not seen, but told by the caller.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While active, counts the storages that operators return until they are gone.

    Those on devices of type `device`; `now` and `peak` are in bytes. The storages of
    `known` are not counted; another one that existed before counts once an operator
    hands it out again. A wrapper of other tensors has none of its own. `inside` are
    bytes that an operator takes while it runs, beside its result.
    """

    def __init__(
        self,
        device: str,
        known: Iterable[Tensor] = (),
        inside: Mapping[Any, int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._device = device
        self._inside = dict(inside or {})
        self._known = [each.untyped_storage() for each in known]
        self._seen: dict[int, object] = {each._cdata: each for each in self._known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and type(leaf) in (Tensor, torch.nn.Parameter):
                self._count(leaf)
        self.peak = max(self.peak, self.now + self._inside.get(func, 0))
        return out

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()

        def gone(_reference: object) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
