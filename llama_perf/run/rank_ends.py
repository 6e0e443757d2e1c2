"""How a task ended on every rank: alike, or on some of them only."""

import json
from datetime import timedelta
from typing import Any

from torch.distributed import DistError

from llama_perf.devices.ranks import Rank
from llama_perf.results.closeness_report import ClosenessResult
from llama_perf.results.run import RowResult, Status
from llama_perf.run.worker_protocol import WorkerReply, WorkerResult, WorkerTask

FOREVER = timedelta(days=365)
# What one rank alone fails at, the others reach within seconds or wait for.
_PATIENCE = timedelta(seconds=3)


class FailedAlone(Exception):
    """A task failed on this rank, and the others have not ended theirs."""


class Ends:
    """Exchanges how tasks ended, by torchrun's store."""

    def __init__(self, store: Any, rank: Rank) -> None:
        self._store, self._rank, self._tasks = store, rank, 0

    def of_all(self, task: WorkerTask, own: WorkerReply) -> WorkerReply:
        """The reply to a task that ended with `own` on this rank.

        It is INVALID where some ranks failed, or failed otherwise than the others.
        Raises FailedAlone.
        """
        self._tasks += 1
        keys = [f"end/{self._tasks}/{index}" for index in range(self._rank.count)]
        failure, told = _failure(own), None
        if failure is not None:
            # Whoever waited for a rank that failed fails after it.
            told = (self._store.add(f"failed/{self._tasks}", 1), *failure)
        self._store.set(keys[self._rank.index], json.dumps(told))
        try:
            self._store.wait(keys, FOREVER if failure is None else _PATIENCE)
        except DistError:
            assert failure is not None, "no rank waits so long"
            raise FailedAlone(failure[-1]) from None
        failures = [json.loads(self._store.get(key)) for key in keys]
        ends = [None if told is None else told[1:] for told in failures]
        if ends.count(ends[0]) == len(ends):
            return own
        if all(end is not None and end[0] == Status.NOT_RUN.value for end in ends):
            return own
        _, first = min((told[0], n) for n, told in enumerate(failures) if told)
        return invalid(task, f"rank {first}: {failures[first][-1]}", own)


def _failure(reply: WorkerReply) -> tuple[str, str] | None:
    """The status and the reason of a row without figures."""
    ended: RowResult | ClosenessResult | None = reply.closeness
    if reply.done is not None:
        ended = reply.done.result
    if ended is None or ended.status is Status.MEASURED:
        return None
    return ended.status.value, str(ended.reason)


def invalid(task: WorkerTask, reason: str, own: WorkerReply) -> WorkerReply:
    """The reply that says why a task is INVALID."""
    row = task.row
    if task.action == "closeness":
        compared = ClosenessResult(
            id=row.id, row=row, status=Status.INVALID, reason=reason
        )
        return WorkerReply(closeness=compared)
    result = RowResult(id=row.id, row=row, status=Status.INVALID, reason=reason)
    environment = None if own.done is None else own.done.environment
    return WorkerReply(done=WorkerResult(result=result, environment=environment))
