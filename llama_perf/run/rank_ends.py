"""How a task ended on every rank: alike, or on some of them only."""

import json
from datetime import timedelta
from typing import Any

from torch.distributed import DistError

from llama_perf.devices.ranks import Rank
from llama_perf.results.closeness_report import ClosenessResult
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.worker_protocol import WorkerReply, without_figures

FOREVER = timedelta(days=365)
# Where every rank fails, all do so within seconds. Where one alone fails, the others
# wait for it.
_PATIENCE = timedelta(seconds=3)


class FailedAlone(Exception):
    """A task failed on this rank, and the others have not ended theirs."""


class Ends:
    """Exchanges how tasks ended, by torchrun's store."""

    def __init__(self, store: Any, rank: Rank) -> None:
        self._store, self._rank = store, rank

    def of_all(self, number: int, row: RowSpec, own: WorkerReply) -> WorkerReply:
        """The reply to a task of `row`, the `number`th, that ended here with `own`.

        It is INVALID where some ranks failed, or failed otherwise than the others.
        Raises FailedAlone.
        """
        keys = [f"end/{number}/{index}" for index in range(self._rank.count)]
        failure, in_order = _failure(own), None
        if failure is not None:
            # Whoever waited for a rank that failed fails after it.
            in_order = (self._store.add(f"failed/{number}", 1), *failure)
        self._store.set(keys[self._rank.index], json.dumps(in_order))
        try:
            self._store.wait(keys, FOREVER if failure is None else _PATIENCE)
        except DistError:
            assert failure is not None, "no rank waits so long"
            raise FailedAlone(failure[-1]) from None
        failures = [json.loads(self._store.get(key)) for key in keys]
        ends = [failure and failure[1:] for failure in failures]
        if ends.count(ends[0]) == len(ends):
            return own
        if all(end is not None and end[0] == Status.NOT_RUN.value for end in ends):
            return own
        _, first = min(
            (failure[0], rank) for rank, failure in enumerate(failures) if failure
        )
        words = f"rank {first}: {failures[first][-1]}"
        return WorkerReply(done=without_figures(row, Status.INVALID, words))


def _failure(reply: WorkerReply) -> tuple[str, str] | None:
    """The status and the reason of a row without figures."""
    ended: RowResult | ClosenessResult | None = reply.closeness
    if reply.done is not None:
        ended = reply.done.result
    if ended is None or ended.status is Status.MEASURED:
        return None
    return ended.status.value, str(ended.reason)
