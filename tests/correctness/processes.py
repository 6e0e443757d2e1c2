"""Whether a process is alive, and waiting for what happens in another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(happened: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Return once it has; fail where it does not in that time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.02)
