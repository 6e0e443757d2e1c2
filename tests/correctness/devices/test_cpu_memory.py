"""What a row's process does with memory that the row freed."""

import json
import os
import platform
import subprocess
import sys
from unittest.mock import patch

import pytest

from llama_perf.run.worker import worker_environment

# Tensors of 64 MiB, one after another: some to warm up, then some that are counted.
_CHILD = """
import json, resource
import torch

def use(times):
    for _ in range(times):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF)

old, new = use(3), use(8)
print(json.dumps([new.ru_minflt - old.ru_minflt, new.ru_maxrss - old.ru_maxrss]))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is another"
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch brings mimalloc here")
def test_a_large_block_is_taken_from_the_kernel_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env=worker_environment(["cpu"]),
        capture_output=True,
        text=True,
        check=True,
    )
    page_faults, grown_kb = json.loads(done.stdout)
    assert page_faults < 1000, "each tensor has 16384 pages"
    assert grown_kb < 1000


def test_the_users_own_settings_of_memory_stay() -> None:
    with patch.dict(os.environ, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}):
        assert worker_environment(["cpu"])["GLIBC_TUNABLES"].endswith("arena_max=1")


def test_a_cards_process_has_the_systems_memory_settings() -> None:
    with patch.dict(os.environ):
        os.environ.pop("GLIBC_TUNABLES", None)
        assert "GLIBC_TUNABLES" not in worker_environment(["cuda"])
