"""Which cores the main threads of two processes may use while they are compared."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_perf.devices.processor import main_threads_on_one_core

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no such call"
)
# A process of two threads, which ends with its input.
TWO_THREADS = """
import sys, threading
threading.Thread(target=sys.stdin.read).start()
print(flush=True)
"""


@contextmanager
def process() -> Iterator[int]:
    command, pipe = [sys.executable, "-c", TWO_THREADS], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started.pid


def threads(of: int) -> list[set[int]]:
    """The cores of a process's main thread, and of its others."""
    tasks = sorted(int(task.name) for task in Path(f"/proc/{of}/task").iterdir())
    return [os.sched_getaffinity(task) for task in tasks]


def test_two_processes_have_their_main_threads_on_one_core_meanwhile() -> None:
    free = os.sched_getaffinity(0)
    with process() as base, process() as head:
        with main_threads_on_one_core([base, head]):
            assert threads(base) == threads(head) == [{max(free)}, free]
        assert threads(base) == threads(head) == [free, free]


def test_processes_that_share_no_core_stay_where_they_are() -> None:
    free = os.sched_getaffinity(0)
    if len(free) < 2:
        pytest.skip("this process has one core")
    with process() as base, process() as head:
        os.sched_setaffinity(base, {min(free)})
        os.sched_setaffinity(head, {max(free)})
        with main_threads_on_one_core([base, head]):
            assert threads(base)[0] == {min(free)}
            assert threads(head)[0] == {max(free)}


def test_a_process_that_has_ended_moves_none() -> None:
    free = os.sched_getaffinity(0)
    with process() as ended:
        pass
    with process() as head, main_threads_on_one_core([ended, head]):
        assert threads(head) == [free, free]
