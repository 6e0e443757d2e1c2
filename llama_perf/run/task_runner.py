"""A task -> its reply, in the process of a worker or of a rank."""

from collections.abc import Callable
from pathlib import Path

from llama_perf.results.run import RowResult
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from llama_perf.run.worker_protocol import WorkerReply, WorkerResult, WorkerTask


class TaskRunner:
    """Runs tasks in a session, which the first one describes."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def session(self, task: WorkerTask) -> Session:
        """The session; it is made for the first task."""
        if self._session is None:
            folder = task.checkpoints
            options = RunRequest(
                checkpoints=None if folder is None else Path(folder),
                inject_slowdown=task.slowdowns,
                inject_damage=task.damages,
                cold_compile=bool(task.cold_compile),
            )
            self._session = Session(task.devices, options=options)
        return self._session

    def run(self, task: WorkerTask, tell: Callable[[str], None]) -> WorkerReply:
        """Do what a task asks for; `tell` is called with each step."""
        session = self.session(task)
        if task.action == "closeness":
            text = None if task.text is None else Path(task.text)
            compared = session.closeness(
                task.row, text=text, tokens=task.tokens, progress=tell
            )
            return WorkerReply(closeness=compared)
        ended: RowResult | tuple[int, ...]
        if task.action is None:
            ended = session.run_row(task.row, progress=tell)
        elif task.action == "load":
            ended = session.load(task.row)
        elif task.action == "prepare":
            ended = session.prepare(task.row, progress=tell)
        else:
            ended = session.sample() if task.action == "sample" else session.forget()
        if isinstance(ended, tuple):
            return WorkerReply(times_ns=ended)
        done = WorkerResult(result=ended, environment=session.environment)
        return WorkerReply(done=done)
