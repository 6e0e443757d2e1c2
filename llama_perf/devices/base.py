"""What the rest of the package asks of a device, whatever kind it is.

A kind of device is one subclass; `llama_perf.devices.device` lists them all.
"""

import gc
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.profiler import ProfilerActivity


class Device(ABC):
    """A device of one kind, here or not; all but `why_absent` need it here."""

    kind: ClassVar[str]
    """Its name in a row's `device`, and torch's name of its type."""
    needs_triton: ClassVar[bool] = False
    """Whether inductor compiles for it through Triton; otherwise through C++."""
    has_graphs: ClassVar[bool] = False
    """Whether its work can be captured as a CUDA graph and replayed."""
    profiled_after_samples: ClassVar[bool] = False
    """Whether the profiler slows what runs after it, so that it must come last."""
    samples_budget_s: ClassVar[float]
    """Seconds of samples that a row of a run may take, where it has enough of them."""
    activity: ClassVar[ProfilerActivity]
    """Where PyTorch's profiler counts this device's work."""
    library_bytes: ClassVar[int] = 0
    """Memory that the libraries keep on it for themselves."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    @abstractmethod
    def why_absent(self) -> str | None:
        """Why torch cannot use it on this machine; None where it can."""

    def why_unusable(self) -> str | None:
        """What keeps torch from a device that is in this machine; None without one."""
        return None

    @property
    @abstractmethod
    def name(self) -> str:
        """The maker's name of it."""

    @property
    @abstractmethod
    def key(self) -> str:
        """The name of its baselines: equal for devices that run equally fast."""

    @property
    def uuid(self) -> str | None:
        """The number of this very device; None where it has none."""
        return None

    @property
    def driver(self) -> str | None:
        """The version of its driver; None where it has none."""
        return None

    @property
    def features(self) -> str | None:
        """Features that code is chosen by and that its name does not say."""
        return None

    @property
    def generator(self) -> torch.Generator:
        """What torch draws from on it where no generator is named."""
        return torch.default_generator

    @property
    def lock_name(self) -> str:
        """The name of the lock that one run at a time holds."""
        return self.kind

    @abstractmethod
    def notes(self) -> list[str]:
        """What a reader of figures measured here should know, one line each."""

    @abstractmethod
    def total_memory_bytes(self) -> int:
        """All of its memory."""

    @abstractmethod
    def free_memory_bytes(self) -> int:
        """Memory that a row could take now."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """The size of its last cache before memory."""

    @abstractmethod
    def stream_bytes(self) -> int:
        """The size of a buffer to measure bandwidth with: larger than any cache."""

    def release_memory(self) -> None:
        """Give memory that is no longer used back to the device."""
        gc.collect()

    @contextmanager
    def counting_waits(self) -> Iterator[list[str]]:
        """Collect a line each time that the block makes the host wait for the device.

        A CPU has no such waits: its profiler counts the operators that read a value.
        """
        yield []

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work that was given to the device is done."""

    def mark(self) -> Any:
        """A point in time behind the work that was given to the device so far."""
        return time.perf_counter_ns()

    def marker(self, count: int) -> Callable[[], Any]:
        """`mark`, to be called at most `count` times, which then creates nothing.

        Its marks are those of the last `marker`: read them before the next one.
        """
        del count
        return self.mark

    def times_ns(self, marks: list[Any]) -> list[int]:
        """Wait for the device; nanoseconds of each mark since the first."""
        return [mark - marks[0] for mark in marks]

    def retained_bytes(self) -> int:
        """What this process has of its memory though it runs no row."""
        return 0

    @abstractmethod
    def reset_peak(self) -> None:
        """Start a new peak from what is in use now."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """The most memory that this process took since `reset_peak`."""

    def peak_allocated_bytes(self) -> int | None:
        """As `peak_bytes`, of tensors only; None where nobody counts it."""
        return None


def slug(name: str) -> str:
    """`name` as part of a key: lower case, without trademarks, safe in a path."""
    text = re.sub(r"\((?:r|tm|c)\)", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")
