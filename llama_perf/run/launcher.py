"""torchrun, as a worker's process: it starts the ranks and says which one broke."""

import os
import socket
import sys

import torch
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)
from torch.distributed.run import parse_args, run

from llama_perf.run.worker_process import python_of
from llama_perf.run.worker_protocol import WorkerReply
from llama_perf.strict_json import to_line

_PORT = "MASTER_PORT"


def main(ranks: int, package: str, replies: int) -> None:
    """Run `ranks` of the `llama_perf` in `package` until the first one has no task.

    They inherit the descriptor `replies` as that of stdout.
    """
    os.dup2(replies, 1)
    # Where it is not set torchrun sets it to 1: a rank describes the machine, and then
    # takes its share of the threads.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    place = ["--standalone"]
    if port := os.environ.get(_PORT):
        if problem := _why_not(port):
            _reply(f"{_PORT}: {problem}")
            return
        place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    start = "from llama_perf.run.rank_process import main\nmain()\n"
    command = python_of(sys.executable, package, start)
    how = [f"--nproc-per-node={ranks}", "--max-restarts=0", "--no-python"]
    try:
        run(parse_args([*place, *how, *command]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _reply(f"rank {rank}: {_words(failure)}")


def _reply(words: str) -> None:
    print(to_line(WorkerReply(broken=words)), flush=True)


def _words(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was ended by signal {-failure.exitcode}"
    # What `rank_process` recorded, if it did: the kind of the exception and its words.
    recorded = failure.error_file_data.get("message")
    if isinstance(recorded, dict):
        _kind, _, words = str(recorded.get("message")).partition(": ")
        if words:
            return words
    return f"ended with code {failure.exitcode}"


def _why_not(port: str) -> str:
    """Why ranks cannot meet at a port of the user's, or nothing."""
    allowed = "allowed: a free one; without it one is chosen"
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("localhost", int(port)))
    except (ValueError, OverflowError):
        return f"{port!r} is no port; {allowed}"
    except OSError as error:
        return f"port {port} cannot be used ({error.strerror}); {allowed}"
    return ""
