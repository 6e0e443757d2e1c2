"""A rank: one of the processes that share a row, as torchrun starts them.

All ranks run the same tasks. The first one reads them from stdin and replies. torchrun
passes on three descriptors: that of stdout is the pipe of replies, until a rank moves
it away. Each rank ends with torchrun, which ends with the worker's guard.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from llama_perf.devices.ranks import Rank
from llama_perf.errors import NotRunnable
from llama_perf.results.run import Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.rank_ends import FOREVER, Ends, FailedAlone
from llama_perf.run.rank_watch import Watch
from llama_perf.run.task_runner import TaskRunner
from llama_perf.run.worker_protocol import (
    KEEPS_ROWS,
    READY,
    WorkerReply,
    WorkerTask,
    without_figures,
)
from llama_perf.strict_json import from_json, to_line

_DIES_WITH_PARENT = 1


def main() -> None:
    """Run each task as the other ranks do, until stdin of the first one ends."""
    end_with_parent()
    replies = move_replies()
    rank = Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    tasks, ends, runner = own_store(), Ends(own_store(), rank), TaskRunner()

    def send(reply: WorkerReply) -> None:
        replies.write(to_line(reply) + "\n")
        replies.flush()

    number = 0
    while line := _next_task(tasks, rank, number := number + 1):
        task = from_json(WorkerTask, line, source="the task")
        watch = Watch(own_store, rank, number, send, task.limit_s)

        def tell(text: str, watch: Watch = watch) -> None:
            watch.step = text
            if rank.is_first:
                send(WorkerReply(progress=text))

        if rank.is_first and number == 1:
            tell(READY)
            tell(KEEPS_ROWS)
        try:
            with watch:
                own = _run(runner, task, tell)
                reply = ends.of_all(number, task.row, own)
        except FailedAlone as error:
            # The others wait for this rank: torchrun ends them, and tells these words.
            get_error_handler().record_exception(error)
            os._exit(1)
        if rank.is_first:
            send(reply)
    if dist.is_initialized():
        dist.destroy_process_group()


def _next_task(store: Any, rank: Rank, number: int) -> str:
    """A line of the first rank's stdin, on every rank; "" behind the last."""
    key = f"task/{number}"
    if rank.is_first:
        line = sys.stdin.readline()
        store.set(key, line)
        return line
    store.wait([key], FOREVER)
    text: str = store.get(key).decode()
    return text


def own_store() -> Any:
    """A connection of its own to torchrun's store: one that waits blocks no other."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]


def _run(runner: TaskRunner, task: WorkerTask, tell: Any) -> WorkerReply:
    try:
        check_devices(task.row)
    except NotRunnable as error:
        ended = without_figures(task.row, Status.NOT_RUN, str(error))
        return WorkerReply(done=ended)
    if not dist.is_initialized():
        # It describes the machine as a process does that is alone.
        runner.session(task)
        join(task.devices)
    return runner.run(task, tell)


def check_devices(row: RowSpec) -> None:
    """Raise NotRunnable unless each rank of `row` has a device, all of one kind."""
    field = f"tensor_parallel: {row.ranks} ranks need"
    if row.device != "cuda":
        if not dist.is_gloo_available():
            raise NotRunnable(f"{field} gloo, which this torch is built without")
        return
    if (count := torch.cuda.device_count()) < row.ranks:
        raise NotRunnable(f"{field} {row.ranks} GPUs, and torch sees {count}")
    if not dist.is_nccl_available():
        raise NotRunnable(f"{field} NCCL, which this torch is built without")
    names = [torch.cuda.get_device_name(index) for index in range(row.ranks)]
    if len(kinds := list(dict.fromkeys(names))) > 1:
        raise NotRunnable(f"{field} GPUs of one kind, not {' and '.join(kinds)}")


def join(devices: tuple[str, ...]) -> None:
    """Join the ranks' group, with a GPU and a share of the cores of its own.

    Where a GPU is missing for a rank, no row runs on GPUs: see `check_devices`.
    """
    count = int(os.environ["WORLD_SIZE"])
    if "cuda" in devices and torch.cuda.device_count() >= count:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Objects are exchanged on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    torch.set_num_threads(max(torch.get_num_threads() // count, 1))


def end_with_parent() -> None:
    """Have this process end when its parent, torchrun, has ended."""
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    # Where there is no such call, or the parent ended before it.
    threading.Thread(target=watch, daemon=True).start()


def move_replies() -> IO[str]:
    """The pipe of replies; what is printed goes to stderr from here on."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(replies, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
