"""One run at a time on a device: two side by side would measure each other.

A lock of the operating system, which a process that is killed lets go of. It guards
against other runs of llama-perf alone; what else is on a card is `card`'s to tell.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from llama_perf.devices.device import device_of
from llama_perf.errors import BusyError
from llama_perf.measure.timing import Progress


def lock_folder() -> Path:
    """Where the locks of all runs on this machine lie.

    `LLAMA_PERF_LOCKS` names another place, for machines whose users do not share one.
    """
    given = os.environ.get("LLAMA_PERF_LOCKS")
    return Path(given) if given else Path(tempfile.gettempdir()) / "llama-perf-locks"


class DeviceLock:
    """The lock of `device`; with `wait`, acquiring waits for whoever has it."""

    def __init__(self, device: torch.device, *, wait: bool) -> None:
        folder = lock_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _open_to_all(folder, 0o777)
        self._name = device_of(device).lock_name
        self._owner = folder / f"{self._name}.owner"
        # Any user may wait for any other.
        self._lock = FileLock(folder / f"{self._name}.lock", mode=0o666)
        self._wait = wait

    def acquire(self, progress: Progress = lambda _text: None) -> None:
        """Take the device; raises BusyError where another run has it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = f"{self._name}: in use by another run, {self._holder()}"
            if not self._wait:
                raise BusyError(
                    f"{holder}; two at once would measure each other, so wait for it"
                    " (--wait) or end it"
                ) from None
            progress(f"{holder}; waiting\n")
            self._lock.acquire()
        self._owner.write_text(
            f"process {os.getpid()}: {' '.join(sys.argv)[:200]}", encoding="utf-8"
        )
        _open_to_all(self._owner, 0o666)

    def _holder(self) -> str:
        try:
            return self._owner.read_text(encoding="utf-8")
        except OSError:
            return "which has not said which"

    def release(self) -> None:
        """Let go of the device."""
        self._lock.release()


@contextmanager
def held(device: torch.device, *, wait: bool, progress: Progress) -> Iterator[None]:
    """The device, locked for as long as the block runs."""
    lock = DeviceLock(device, wait=wait)
    lock.acquire(progress)
    try:
        yield
    finally:
        lock.release()


def _open_to_all(path: Path, mode: int) -> None:
    # Its owner alone may do so, and then has done so already.
    if path.stat().st_uid == os.getuid():
        path.chmod(mode)
