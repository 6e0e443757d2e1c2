"""What a row's process does with memory that the row freed."""

import json
import platform
import subprocess
import sys

import pytest

from llama_perf.run.worker_process import worker_environment

VARIABLE = "GLIBC_TUNABLES"
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
    platform.libc_ver()[0] != "glibc", reason="only glibc has these settings"
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch brings mimalloc")
def test_a_large_block_is_taken_from_the_kernel_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
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


def test_the_users_own_settings_of_memory_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "glibc.malloc.arena_max=1")
    assert worker_environment(["cpu"])[VARIABLE] == "glibc.malloc.arena_max=1"


def test_a_cards_process_has_the_systems_memory_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert VARIABLE not in worker_environment(["cuda"])
