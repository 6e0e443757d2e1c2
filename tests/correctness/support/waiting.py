"""A check that the host does not wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _NoWaiting(TorchDispatchMode):
    """Refuses, on the CPU, the operators that on a card make the host wait.

    Reading a value, or an output as long as the values say, waits for what leads to
    it; a tensor made of a Python list is copied to the card, and the copy waits.
    """

    WAITING = frozenset(
        {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh"}
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if (name := func.overloadpacket.__name__) in self.WAITING:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with _NoWaiting():  # type: ignore[no-untyped-call]
            yield
        return
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        # Whatever went wrong: every later test would be refused to wait as well.
        torch.cuda.set_sync_debug_mode("default")
