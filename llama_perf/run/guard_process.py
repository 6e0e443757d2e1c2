"""The guard of a worker: kills the worker's process group when their parent has ended.

`run/guard.py` runs this file as a script, by a Python without site packages. So it
imports the standard library only. It has the device's lock until the group is gone.
"""

import os
import signal
import sys
import time

_POLL_S = 0.01
# Fields of /proc/PID/stat behind the name, which may hold any character.
_STATE, _GROUP, _THREADS = 0, 2, 17


def guard(group: int) -> None:
    """Wait for the end of stdin, kill the process group, wait until it is gone."""
    # Whoever ends a job may signal all its processes at once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Only the parent has the other end of this pipe.
    while os.read(sys.stdin.fileno(), 1):
        pass
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        # It has ended by itself.
        return
    while _is_there(group):
        time.sleep(_POLL_S)


def _is_there(group: int) -> bool:
    """Whether a process of the group still runs; False where there is no /proc."""
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return False
    for process in processes:
        try:
            with open(f"/proc/{process}/stat", "rb") as file:
                stat = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        # A process is a zombie as soon as its first thread has ended.
        ended = stat[_STATE] in b"ZX" and int(stat[_THREADS]) <= 1
        if int(stat[_GROUP]) == group and not ended:
            return True
    return False


if __name__ == "__main__":
    guard(int(sys.argv[1]))
