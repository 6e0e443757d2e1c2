"""One run at a time on a device: two at once would slow each other down.

The operating system holds the lock for as long as a process has its descriptor. The
workers of a run and their guards inherit it. So a run that was killed keeps the lock
until its workers are gone. The lock only keeps other runs of llama-perf away;
`measure/` looks for other programs on a GPU.
"""

import fcntl
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from llama_perf.errors import UserError
from llama_perf.files import is_absent, make_folder, refused

if TYPE_CHECKING:
    import torch

_POLL_S = 0.05
# Far more than the guards of a run that was killed need to end its workers.
_WORKERS_END_S = 10.0
_held: list[int] = []


def held_descriptors() -> Sequence[int]:
    """The descriptors of the locks that this process holds, for what it starts."""
    return tuple(_held)


@contextmanager
def locked(
    device: "torch.device", *, wait: bool, notify: Callable[[str], None]
) -> Iterator[None]:
    """Lock the device for as long as the block runs.

    Where another run has it, waits for that with `wait`, which `notify` gets a line
    about, else raises UserError. The workers of a run that was killed are waited for in
    any case. The variable `LLAMA_PERF_LOCKS` names another folder for the locks.
    """
    # It imports torch.
    from llama_perf.devices.device import device_of

    temporary = Path(tempfile.gettempdir()) / "llama-perf-locks"
    folder = Path(os.environ.get("LLAMA_PERF_LOCKS") or temporary)
    is_new = is_absent(folder)
    make_folder("LLAMA_PERF_LOCKS", folder)
    if is_new:
        # Any user's run may wait for another's. A folder that was there is not changed.
        _open_to_all(folder, 0o777)
    name = device_of(device).lock_name
    path, owner = folder / f"{name}.lock", folder / f"{name}.owner"
    with refused("LLAMA_PERF_LOCKS", path, "it cannot be opened"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _open_to_all(path, 0o666)
        _take(descriptor, name, owner, wait=wait, notify=notify)
        _held.append(descriptor)
        words = " ".join(sys.argv)[:200]
        # It is only shown to others: a full disk stops no run.
        with suppress(OSError):
            text = f"process {os.getpid()}: {words}"
            owner.write_text(text, encoding="utf-8", errors="replace")
            _open_to_all(owner, 0o666)
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
        # For all that have inherited it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _take(
    descriptor: int,
    name: str,
    owner: Path,
    *,
    wait: bool,
    notify: Callable[[str], None],
) -> None:
    deadline = time.monotonic() + _WORKERS_END_S
    while not _is_taken(descriptor):
        holder, is_there = _holder(owner)
        if is_there or time.monotonic() >= deadline:
            holder = f"{name}: in use by {holder}"
            if not wait:
                raise UserError(
                    f"{holder}; two at once would slow each other down: wait for it"
                    " (--wait) or end it"
                )
            notify(f"{holder}; waiting")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        time.sleep(_POLL_S)


def _is_taken(descriptor: int) -> bool:
    """Whether this process has the lock, which it tries to take."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(owner: Path) -> tuple[str, bool]:
    """Who has the lock, and whether that process is there."""
    with suppress(OSError):
        text = owner.read_text(encoding="utf-8", errors="replace")
        if (process := re.match(r"process (\d+):", text)) is not None:
            if _is_running(int(process[1])):
                return f"another run, {text}", True
            # What another container runs cannot be seen.
            whose = "a run that has ended, or that runs in another container"
            return f"the workers of {whose}, {text}", False
    return "another run, whose process is unknown", True


def _is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _open_to_all(path: Path, mode: int) -> None:
    # Only its owner can change the mode.
    if path.stat().st_uid == os.getuid():
        path.chmod(mode)
