"""Whether a process is alive, and waiting for what happens in another one.

No test's outcome hangs on how fast this machine is: what must happen is waited for,
and what must take too long does so by a clock that stands still until then.
"""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import psutil

# Only a process that hangs takes so long, however busy the machine is.
HANG_S = 1200.0


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(happened: Callable[[], bool]) -> None:
    """Return once it has; fail where it does not in HANG_S."""
    deadline = time.monotonic() + HANG_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.02)


def clock_that_waits_for(happened: Callable[[], bool]) -> SimpleNamespace:
    """A `time` whose clock stands still until it has happened, and then jumps a day."""
    return SimpleNamespace(monotonic=lambda: 86_400.0 if happened() else 0.0)
