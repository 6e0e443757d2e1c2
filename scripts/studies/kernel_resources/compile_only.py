"""A Triton driver that compiles kernels for a card and launches none of them.

Launches go through Triton's real JIT on a machine without a card: what a kernel is
given is specialised, bound and compiled as on the card. Wrong arguments fail here,
launches can be counted, and `TRITON_CACHE_DIR` is filled with what that card would
load, where the Triton wheel and the Python are the same. Tensors may be on the meta
device, which makes a model of seven billion parameters cost nothing. Nothing is
computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Of the largest card of each architecture; launches that ask for more are refused.
_SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """A launch that was compiled; `dependent`: by programmatic dependent launch."""

    kernel: str
    grid: tuple[int, ...]
    dependent: bool
    shared_bytes: int
    warps: int


def compile_only(capability: int, *, multiprocessors: int = 132) -> list[Launched]:
    """Make Triton compile for sm_`capability`, such as 90; the list that launches fill.

    From now on, for all of this process: a kernel is compiled once a process, so no
    two targets can be used in one.
    """
    launches: list[Launched] = []
    driver.set_active(_Driver(capability, multiprocessors, launches))
    return launches


@contextmanager
def launching_operators() -> Iterator[None]:
    """Within it this project's operators launch for meta tensors as for a card's."""
    with _Launching():
        yield


class _Launching(TorchDispatchMode):
    def __init__(self) -> None:
        # torch's own has no types.
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if func.namespace == "llama_perf":
            # torch has no public way to ask an operator for a device's function.
            operator = torch._library.custom_ops.OPDEFS[
                func._overloadpacket._qualified_op_name
            ]
            launch = operator._backend_fns.get("cuda")
            if launch is not None:
                return launch(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Driver:
    """What Triton asks of a driver, as `triton.backends.driver.GPUDriver` has it."""

    def __init__(
        self, capability: int, multiprocessors: int, launches: list[Launched]
    ) -> None:
        self._capability = capability
        self.utils = _Utils(capability, multiprocessors)

        def launcher(src: Any, metadata: Any) -> _Launcher:
            return _Launcher(src, metadata, launches)

        self.launcher_cls = launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_device_capability(self, _device: int = 0) -> tuple[int, int]:
        return divmod(self._capability, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def set_current_device(self, _device: int) -> None:
        pass

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


class _Utils:
    def __init__(self, capability: int, multiprocessors: int) -> None:
        self._properties = {
            "max_shared_mem": _SHARED_BYTES[capability],
            "multiprocessor_count": multiprocessors,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(self, *_binary: Any) -> tuple[int, int, int, int, int]:
        # Module, function, registers, spills, maximum of threads.
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return self._properties


class _Launcher:
    def __init__(self, src: Any, metadata: Any, launches: list[Launched]) -> None:
        self._name = getattr(src.fn, "__name__", src.name)
        self._metadata, self._launches = metadata, launches

    def __call__(self, *arguments: Any, **_options: Any) -> None:
        self._launches.append(
            Launched(
                kernel=self._name,
                grid=tuple(arguments[:3]),
                dependent=bool(self._metadata.launch_pdl),
                shared_bytes=self._metadata.shared,
                warps=self._metadata.num_warps,
            )
        )
