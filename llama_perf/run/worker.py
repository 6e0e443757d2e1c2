"""A process that runs rows, one after another, and the side that starts it.

A crash, a hang or an out-of-memory kill costs only the row that runs. A task is a line
of JSON on the worker's stdin, a reply one on a pipe: `compare --base` starts the
workers of older revisions, so this protocol has to stay. A worker does not outlive the
process that started it (`run/guard.py`). Knows no baseline.
"""

import math
import os
import queue
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from llama_perf.files import CHECKOUT
from llama_perf.results.closeness_report import ClosenessResult, joined
from llama_perf.results.run import Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.guard import GuardedProcess
from llama_perf.run.lock import held_descriptors
from llama_perf.run.options import RunRequest
from llama_perf.run.output_tail import tail
from llama_perf.run.worker_process import (
    ranks_command,
    worker_command,
    worker_environment,
)
from llama_perf.run.worker_protocol import (
    KEEPS_ROWS,
    NOTE,
    READY,
    Action,
    RowEnded,
    WorkerReply,
    WorkerResult,
    WorkerTask,
    without_figures,
)
from llama_perf.strict_json import from_json, to_line

PYTHON = Path(sys.executable)
# Time between two checks whether the process is alive.
_POLL_S = 1.0
# Time for a worker that has closed its pipe, or that gets no more tasks, to end.
_GRACE_S = 5.0
# Time for a worker to import torch and find its device, which a cold disk or a driver
# makes long.
_START_S = 300.0
Ended = WorkerResult | ClosenessResult | tuple[int, ...]
"""What a task ends with."""


class Worker:
    """One process that runs rows.

    `package` is the folder of the `llama_perf` it runs, `python` its interpreter; by
    default those of this process. Of more than one of `ranks` it is torchrun, which
    starts a process for each.
    """

    def __init__(
        self,
        *,
        options: RunRequest,
        devices: Iterable[str],
        package: Path = CHECKOUT,
        python: Path = PYTHON,
        ranks: int = 1,
    ) -> None:
        self._options = options
        self._devices = tuple(sorted(set(devices)))
        self._output: IO[bytes] = tempfile.TemporaryFile("ab+")  # noqa: SIM115
        self._replies, replies_end = os.pipe()
        try:
            self._process = GuardedProcess(
                (
                    worker_command(python, package, replies_end)
                    if ranks == 1
                    else ranks_command(python, package, replies_end, ranks)
                ),
                output=self._output,
                pass_fds=[replies_end],
                locks=held_descriptors(),
                environment=worker_environment(self._devices),
            )
        finally:
            os.close(replies_end)
        self._tasks = self._process.stdin
        self._ready = False
        # The output up to here is of tasks that succeeded. What follows may be of the
        # time before a task: a process may break, and say why, while it waits.
        self._output_begin = 0
        self.keeps_rows = False
        """Whether it knows the actions of a task; known once it had a task."""

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.id

    def run(self, row: RowSpec, progress: Callable[[str], None]) -> WorkerResult:
        """Run one row in the process, and where the options say so its closeness.

        Where the process breaks, or takes longer than the options' `row_timeout`, the
        row is INVALID with the end of its output. The time counts from the process's
        first reply, so the start of the process is no part of it. An interrupt ends the
        process.
        """
        ended = self._ask(self._task(row), progress)
        assert isinstance(ended, WorkerResult), "an answer to an action"
        is_measured = ended.result.measurement is not None
        if not (self._options.closeness and row.is_quantized and is_measured):
            return ended
        compared = self.closeness(row, progress)
        if compared.status is Status.NOT_RUN:
            progress(f"{NOTE}{compared.reason}")
        return replace(ended, result=joined(ended.result, compared))

    def load(self, row: RowSpec) -> None:
        """Load the libraries and the model's file that a row needs.

        Raises RowEnded where this or another action breaks, or takes longer than the
        options' `row_timeout`.
        """
        self._act(row, "load")

    def prepare(self, row: RowSpec, progress: Callable[[str], None]) -> None:
        """Build a row, warm it up and keep it."""
        self._act(row, "prepare", progress)

    def sample(self, row: RowSpec) -> int:
        """Run a generation of the row that is kept; its nanoseconds."""
        (time_ns,) = self._act(row, "sample")
        return time_ns

    def forget(self, row: RowSpec) -> None:
        """Free the row that is kept."""
        self._act(row, "forget")

    def closeness(
        self, row: RowSpec, progress: Callable[[str], None]
    ) -> ClosenessResult:
        """Compare a row with its unquantized twin; one that breaks is a result too."""
        task = replace(
            self._task(row),
            action="closeness",
            text=_absolute(self._options.text),
            tokens=self._options.tokens,
        )
        ended = self._ask(task, progress)
        if isinstance(ended, ClosenessResult):
            return replace(ended, row=row)
        assert isinstance(ended, WorkerResult), "an action that takes no samples"
        broken = ended.result
        return ClosenessResult(
            id=row.id, row=row, status=broken.status, reason=broken.reason
        )

    def _act(
        self,
        row: RowSpec,
        action: Action,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> tuple[int, ...]:
        ended = self._ask(replace(self._task(row), action=action), progress)
        if isinstance(ended, WorkerResult):
            raise RowEnded(ended)
        assert isinstance(ended, tuple), "an action that compares nothing"
        return ended

    def _ask(self, task: WorkerTask, progress: Callable[[str], None]) -> Ended:
        row, output = task.row, self._output.fileno()
        try:
            ended = self._exchange(task, progress)
        except BaseException:
            self.kill()
            raise
        if not isinstance(ended, str):
            self._output_begin = os.fstat(output).st_size
            return ended
        text = os.pread(output, 1 << 20, self._output_begin).decode(errors="replace")
        reason = f"its process {ended}: {tail(text)}"
        return without_figures(row, Status.INVALID, reason)

    def _task(self, row: RowSpec) -> WorkerTask:
        return WorkerTask(
            row=row,
            devices=self._devices,
            checkpoints=_absolute(self._options.checkpoints),
            slowdowns=self._options.inject_slowdown,
            damages=tuple(self._options.inject_damage),
            # Older revisions do not know it.
            cold_compile=self._options.cold_compile or None,
            limit_s=self._options.row_timeout if row.ranks > 1 else None,
        )

    def _exchange(
        self, task: WorkerTask, progress: Callable[[str], None]
    ) -> Ended | str:
        """Send a task; what it ended with, or how the process ended without that."""
        limit = self._options.row_timeout or math.inf
        # Before the row is sent, since a process that has run others starts at once.
        deadline = time.monotonic() + limit + (0 if self._ready else _START_S)
        # If the process has ended, it is reported below how.
        with suppress(BrokenPipeError):
            self._tasks.write(to_line(task.to_send).encode() + b"\n")
            self._tasks.flush()
        received = b""
        while True:
            *lines, received = received.split(b"\n")
            for line in lines:
                source = f"the process of {task.row.id}"
                reply = from_json(WorkerReply, line, source=source)
                if not self._ready:
                    # Older revisions begin with the row's first step or its result.
                    self._ready, deadline = True, time.monotonic() + limit
                if reply.done is not None:
                    return reply.done.of_row(task.row)
                if reply.broken is not None:
                    self.kill()
                    return without_figures(task.row, Status.INVALID, reply.broken)
                if (ended := reply.closeness or reply.times_ns) is not None:
                    return ended
                if reply.progress == KEEPS_ROWS:
                    self.keeps_rows = True
                elif reply.progress != READY:
                    progress(str(reply.progress))
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self.kill()
                start = "" if self._ready else f" and {_START_S:g} s to start"
                return f"was ended after {limit:g} s (row-timeout){start}"
            alive = self._process.poll() is None
            # A process that ended may have replied before.
            seconds = min(left_s, _POLL_S) if alive else 0
            ready = select.select([self._replies], [], [], seconds)[0]
            part = os.read(self._replies, 1 << 16) if ready else b""
            received += part
            # It ended or closed its pipe: no reply can come any more.
            if not part and (ready or not alive):
                break
        code = self._process.wait(_GRACE_S)
        if code == -signal.SIGKILL:
            return "was ended by signal 9, as a system out of memory does"
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"

    def kill(self) -> None:
        """Kill the process and those it started; a row that runs ends INVALID."""
        self._process.kill()

    def close(self) -> None:
        """End the process and drop its output."""
        try:
            # A task that the process did not live to read is still in the pipe.
            with suppress(BrokenPipeError):
                self._tasks.close()
            self._process.wait(2 * _GRACE_S)
        finally:
            self._process.close()
            os.close(self._replies)
            self._output.close()


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def run_in_process(
    row: RowSpec,
    *,
    options: RunRequest,
    devices: Iterable[str],
    package: Path = CHECKOUT,
    python: Path = PYTHON,
    progress: Callable[[str], None] = lambda _text: None,
) -> WorkerResult:
    """Run one row in a fresh process; see `Worker`."""
    worker = Worker(
        options=options,
        devices=devices,
        package=package,
        python=python,
        ranks=row.ranks,
    )
    with closing(worker):
        return worker.run(row, progress)


def main(arguments: list[str]) -> None:
    """Run each task from stdin; reply to the file descriptor in `arguments`."""
    replies = os.fdopen(int(arguments[0]), "w", encoding="utf-8")
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()

    def send(reply: WorkerReply) -> None:
        print(to_line(reply), file=replies, flush=True)

    def tell(text: str) -> None:
        send(WorkerReply(progress=text))

    from llama_perf.run.task_runner import TaskRunner

    runner, is_ready = TaskRunner(), False
    while (line := tasks.get()) is not None:
        task = from_json(WorkerTask, line, source="the task")
        if not is_ready:
            runner.session(task)
            tell(READY)
            tell(KEEPS_ROWS)
            is_ready = True
        send(runner.run(task, tell))
    replies.close()


def _read_tasks(tasks: queue.SimpleQueue[str | None]) -> None:
    for line in sys.stdin:
        tasks.put(line)
    tasks.put(None)
