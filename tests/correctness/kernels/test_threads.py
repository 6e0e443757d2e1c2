"""The threads that share the chunks of a C++ loop."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from llama_perf.kernels import cpp_library
from tests.correctness.support.cpp_operators import NEEDED, torch_threads
from tests.correctness.support.kernel_samples import FORMATS, multiply, sample

TASKS = Path("/proc/self/task")
pytestmark = [
    *NEEDED,
    pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux lists its threads there"),
]


def policies() -> set[int]:
    """The scheduling policies of this process's threads."""
    found = set()
    for task in TASKS.iterdir():
        # Another library's thread may end meanwhile.
        with suppress(ProcessLookupError):
            found.add(os.sched_getscheduler(int(task.name)))
    return found


def test_a_thread_that_is_woken_takes_no_core_from_its_caller() -> None:
    assert cpp_library.load() is None
    with torch_threads(2):
        multiply(*sample(FORMATS[0], (1, 256, 256), torch.float32), torch.float32)
    # A thread sets its policy when it starts, which may be after the product is done.
    deadline = time.monotonic() + 60
    while os.SCHED_BATCH not in policies() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.SCHED_BATCH in policies()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
