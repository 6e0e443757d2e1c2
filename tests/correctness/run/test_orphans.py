"""Nothing outlives the process that started it, and until then the lock stays taken."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import IO

import psutil
import pytest
import torch

from llama_perf.errors import UserError
from llama_perf.run import lock
from llama_perf.run.guard import GuardedProcess
from llama_perf.run.lock import held_descriptors, locked
from tests.correctness.support.cpp_operators import NEEDED
from tests.correctness.support.plugin_project import ROOT
from tests.correctness.support.processes import HANG_S, alive, wait_until

CPU = torch.device("cpu")
# What a worker does for longer than any test takes; `started` has its process's number.
BUSY = {
    "a call that holds Python's lock": (
        "import ctypes, os\n"
        "open({started!r}, 'w').write(str(os.getpid()))\n"
        "ctypes.PyDLL(None).sleep(100_000)"
    ),
    "a child of a child": (
        "import subprocess\n"
        "subprocess.run(['sh', '-c', 'sleep 100000 & echo $! > {started}; wait'])"
    ),
    "a compiler": (
        "import subprocess\n"
        # It waits for the rest of the source.
        "words = ['g++', '-x', 'c++', '-S', '-', '-o', '/dev/null']\n"
        "compiler = subprocess.Popen(words, stdin=subprocess.PIPE)\n"
        "open({started!r}, 'w').write(str(compiler.pid))\n"
        "compiler.wait()"
    ),
}
# A run without torch: it takes the lock, and has two workers.
RUN = """
import os, sys, threading
from types import ModuleType, SimpleNamespace
device = ModuleType("llama_perf.devices.device")
device.device_of = lambda _: SimpleNamespace(lock_name="cpu")
sys.modules[device.__name__] = device
from llama_perf.run.guard import GuardedProcess
from llama_perf.run.lock import held_descriptors, locked
with locked(None, wait=False, notify=print):
    workers = [
        GuardedProcess(
            [sys.executable, "-c", code], output=sys.stderr.buffer, pass_fds=(),
            locks=held_descriptors(), environment=os.environ,
        )
        for code in sys.argv[1:]
    ]
    print("started", flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def output(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "output").open("wb") as file:
        yield file


def is_guard(process: psutil.Process) -> bool:
    try:
        return any("guard_process" in word for word in process.cmdline())
    except psutil.ZombieProcess:
        return False


def ignores_sigterm(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    mask = int(status.partition("SigIgn:\t")[2].split()[0], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


class Run:
    """A process that runs `RUN`; however a test ends, its guards end its workers."""

    def __init__(self, codes: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN, *codes],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.id = self._process.pid
        self.guards: list[psutil.Process] = []
        self.workers: list[psutil.Process] = []

    def wait_for_children(self, started: list[Path]) -> None:
        """Find all that it started, once each of its workers has `started`."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"started\n"
        wait_until(lambda: all(path.exists() and path.read_text() for path in started))
        for process in psutil.Process(self.id).children(recursive=True):
            (self.guards if is_guard(process) else self.workers).append(process)
        assert len(self.guards) == len(started)
        ids = {process.pid for process in self.workers}
        assert ids >= {int(path.read_text()) for path in started}

    def kill(self) -> None:
        self._process.kill()
        wait_until(lambda: not alive(self.id))

    def close(self) -> None:
        self._process.kill()
        for guard in self.guards:
            with suppress(psutil.NoSuchProcess):
                guard.resume()
        with self._process:
            pass


@pytest.mark.parametrize(
    "busy", [*list(BUSY)[:-1], pytest.param("a compiler", marks=NEEDED)]
)
def test_a_killed_run_keeps_the_lock_until_its_workers_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    started = [tmp_path / str(number) for number in range(2)]
    codes = [BUSY[busy].format(started=str(path)) for path in started]
    with closing(Run(codes)) as run:
        run.wait_for_children(started)
        for guard in run.guards:
            # Whoever ends a job may end all its processes; a guard still has a task.
            wait_until(partial(ignores_sigterm, guard))
            guard.terminate()
            guard.suspend()
        with pytest.raises(UserError, match=f"another run, process {run.id}: -c"):
            with_lock()
        run.kill()
        assert all(alive(process.pid) for process in run.workers)
        with monkeypatch.context() as patch:
            patch.setattr(lock, "_WORKERS_END_S", 0.1)
            whose = f"the workers of a run that has ended, or .*, process {run.id}: -c"
            with pytest.raises(UserError, match=whose):
                with_lock()
        for guard in run.guards:
            guard.resume()
        # It waits by itself for what the guards do now.
        monkeypatch.setattr(lock, "_WORKERS_END_S", HANG_S)
        with_lock()
        assert not any(alive(process.pid) for process in run.workers)
        wait_until(lambda: not any(alive(guard.pid) for guard in run.guards))


def with_lock() -> None:
    with locked(CPU, wait=False, notify=print):
        assert len(held_descriptors()) == 1
    assert not held_descriptors()


def guarded(code: str, output: IO[bytes]) -> GuardedProcess:
    return GuardedProcess(
        ["sh", "-c", code],
        output=output,
        pass_fds=(),
        locks=held_descriptors(),
        environment=os.environ,
    )


@pytest.mark.parametrize("guard_ends", [False, True])
def test_what_a_worker_leaves_running_ends_when_it_is_closed(
    output: IO[bytes], tmp_path: Path, guard_ends: bool
) -> None:
    left = tmp_path / "left"
    open_files = psutil.Process().num_fds()
    with locked(CPU, wait=False, notify=print):
        process = guarded(f"sleep 100000 & echo $! > {left}; exit 7", output)
        with closing(process):
            assert process.wait(HANG_S) == 7
            child = int(left.read_text(encoding="utf-8"))
            assert alive(child)
            # Its number stays its group's.
            assert psutil.Process(process.id).status() == psutil.STATUS_ZOMBIE
            (guard,) = filter(is_guard, psutil.Process().children())
            if guard_ends:
                guard.kill()
        wait_until(lambda: not alive(child))
        assert not psutil.pid_exists(process.id)
        assert not guard.is_running()
    with_lock()
    assert psutil.Process().num_fds() == open_files


def test_a_lock_is_free_at_once_though_a_process_has_its_descriptor(
    output: IO[bytes],
) -> None:
    with locked(CPU, wait=False, notify=print):
        process = guarded("sleep 100000", output)
    with closing(process):
        with_lock()
