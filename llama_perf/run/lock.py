"""One run at a time on a device: two at once would slow each other down.

The operating system holds the lock and releases it when the process ends. It only
keeps other runs of llama-perf away; `measure/` looks for other programs on a GPU.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from llama_perf.devices.device import device_of
from llama_perf.errors import UserError
from llama_perf.files import make_folder


@contextmanager
def locked(
    device: torch.device, *, wait: bool, notify: Callable[[str], None]
) -> Iterator[None]:
    """Lock the device for as long as the block runs.

    Where another run has it, waits for that with `wait`, which `notify` gets a line
    about, else raises UserError. The
    variable `LLAMA_PERF_LOCKS` names another folder for the locks.
    """
    temporary = Path(tempfile.gettempdir()) / "llama-perf-locks"
    folder = Path(os.environ.get("LLAMA_PERF_LOCKS") or temporary)
    make_folder("LLAMA_PERF_LOCKS", folder)
    # Any user's run may wait for any other's.
    _open_to_all(folder, 0o777)
    name = device_of(device).lock_name
    owner = folder / f"{name}.owner"
    lock = FileLock(folder / f"{name}.lock", mode=0o666)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        process = "whose process is unknown"
        with suppress(OSError):
            process = owner.read_text("utf-8")
        holder = f"{name}: in use by another run, {process}"
        if not wait:
            raise UserError(
                f"{holder}; two at once would slow each other down: wait for it"
                " (--wait) or end it"
            ) from None
        notify(f"{holder}; waiting")
        held = lock.acquire()
    with held:
        words = " ".join(sys.argv)[:200]
        owner.write_text(f"process {os.getpid()}: {words}", encoding="utf-8")
        _open_to_all(owner, 0o666)
        yield


def _open_to_all(path: Path, mode: int) -> None:
    # Only its owner can change the mode.
    if path.stat().st_uid == os.getuid():
        path.chmod(mode)
