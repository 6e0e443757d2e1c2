"""One run at a time on a device: two at once would slow each other down.

The operating system holds the lock and releases it when the process ends. It only
keeps other runs of llama-perf away; `measure/` looks for other programs on a GPU.
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
    """The folder with the locks of all runs on this machine.

    The variable `LLAMA_PERF_LOCKS` names another one.
    """
    folder = os.environ.get("LLAMA_PERF_LOCKS")
    return Path(folder or Path(tempfile.gettempdir()) / "llama-perf-locks")


class DeviceLock:
    """The lock of `device`; with `wait`, `acquire` waits for the run that has it."""

    def __init__(self, device: torch.device, *, wait: bool) -> None:
        folder = lock_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _open_to_all(folder, 0o777)
        self._name = device_of(device).lock_name
        self._owner = folder / f"{self._name}.owner"
        # Any user's run may wait for any other's.
        self._lock = FileLock(folder / f"{self._name}.lock", mode=0o666)
        self._wait = wait

    def acquire(self, progress: Progress = lambda _text: None) -> None:
        """Lock the device; raises BusyError where another run has it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = f"{self._name}: in use by another run, {self._holder()}"
            if not self._wait:
                raise BusyError(
                    f"{holder}; two at once would slow each other down: wait for it"
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
            return "whose process is unknown"

    def release(self) -> None:
        """Unlock the device."""
        self._lock.release()


@contextmanager
def locked(device: torch.device, *, wait: bool, progress: Progress) -> Iterator[None]:
    """Lock the device for as long as the block runs; raises BusyError."""
    lock = DeviceLock(device, wait=wait)
    lock.acquire(progress)
    try:
        yield
    finally:
        lock.release()


def _open_to_all(path: Path, mode: int) -> None:
    # Only its owner can change the mode.
    if path.stat().st_uid == os.getuid():
        path.chmod(mode)
