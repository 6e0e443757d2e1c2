"""Rows of several ranks, and what is said of a rank that breaks."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import launcher
from llama_perf.run.options import RunRequest
from llama_perf.run.worker import run_in_process
from llama_perf.run.worker_process import ranks_command

ROW = RowSpec(
    model="stories15M",
    device="cpu",
    dtype="float32",
    max_new_tokens=4,
    num_samples=2,
    tensor_parallel=2,
)
# Python imports it when it starts, in each rank: it breaks one of them.
BREAKS = """
import os

if os.environ.get("RANK") == "1":
    import signal, sys, threading, time

    def break_when_measuring():
        while "llama_perf.run.session" not in sys.modules:
            time.sleep(0.01)
        session = sys.modules["llama_perf.run.session"]
        while not hasattr(session, "_attempt"):
            time.sleep(0.01)

        def measure_row(prepared, **_options):
            {how}

        session.measure_row = measure_row

    threading.Thread(target=break_when_measuring, daemon=True).start()
"""


@pytest.fixture
def run_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RowResult]:
    def run(how: str) -> RowResult:
        (tmp_path / "sitecustomize.py").write_text(BREAKS.format(how=how))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        options = RunRequest(row_timeout=15.0 if "sleep" in how else 120.0)
        return run_in_process(ROW, options=options, devices=["cpu"]).result

    return run


def ranks_left() -> list[int]:
    """Ranks of no worker of another test: torchrun, their parent, is gone."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "ppid"])
        if "rank_process import main" in " ".join(process.info["cmdline"] or ())
        and process.info["ppid"] == 1
    ]


def threads_alone() -> int:
    """Those of a process that is no rank."""
    count = "import torch; print(torch.get_num_threads())"
    return int(subprocess.check_output([sys.executable, "-c", count]))


def test_two_ranks_are_measured() -> None:
    ended = run_in_process(ROW, options=RunRequest(), devices=["cpu"])
    measured = ended.result.measurement
    assert measured is not None, ended.result.reason
    assert measured.ranks is not None
    first, second = measured.ranks.each
    assert measured.model_size_bytes == first.model_size_bytes + second.model_size_bytes
    assert measured.peak_memory_bytes == max(
        first.peak_memory_bytes, second.peak_memory_bytes
    )
    totals = zip(first.sample_ns, second.sample_ns, strict=True)
    assert measured.sample_ns == tuple(map(max, totals))
    assert measured.ranks.backend == "gloo"
    # Of the whole machine, not of a rank's share.
    assert ended.environment is not None
    assert ended.environment.threads == threads_alone()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise RuntimeError('its own words')", "rank 1: RuntimeError: its own words"),
        (
            "import torch; raise torch.OutOfMemoryError('tried 2 GiB')",
            "rank 1: out of memory: tried 2 GiB",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1: was ended by signal 9"),
        ("os._exit(3)", "rank 1: ended with code 3"),
        ("time.sleep(1000)", "rank 1: the others wait for it after 15 s (row-timeout)"),
    ],
)
def test_a_row_ends_with_the_words_of_the_rank_that_broke(
    run_broken: Callable[[str], RowResult], how: str, words: str
) -> None:
    ended = run_broken(how)
    assert ended.status is Status.INVALID
    assert str(ended.reason).startswith(words)
    assert ranks_left() == []


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        ended = run_in_process(ROW, options=RunRequest(), devices=["cpu"]).result
    words = (
        f"MASTER_PORT: port {port} cannot be used (Address already in use); allowed:"
    )
    assert str(ended.reason).startswith(words)
    assert launcher._why_not("no") == (
        "'no' is no port; allowed: a free one; without it one is chosen"
    )


@pytest.mark.parametrize("room", ["llama_perf", "llama_perf/run"])
def test_an_older_revision_without_ranks_is_one_line(tmp_path: Path, room: str) -> None:
    """`compare --base` starts it with its own package."""
    for folder in (tmp_path / room, tmp_path / "llama_perf"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    command = ranks_command(Path(sys.executable), tmp_path, 2, 2)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "tensor_parallel: this revision has no rows of several ranks\n"
    )
