"""What a worker is asked and what it replies, one line of JSON each.

`compare --base` starts the workers of older revisions, so a field may be added and none
may change. A new field is left out where it has its default: older revisions refuse
what they do not know.
"""

from dataclasses import replace
from typing import Literal

from llama_perf.results.closeness_report import ClosenessResult
from llama_perf.results.run import Environment, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import record

NOTE = "note: "
"""The beginning of a progress text that a reader must not miss; others are steps."""
# The progress with which a worker says that it is ready for rows. It is no field of its
# own, since older revisions refuse unknown fields.
READY = "ready"
# What one that knows the actions says next.
KEEPS_ROWS = "keeps rows"
Action = Literal["load", "prepare", "sample", "forget", "closeness"]


@record
class WorkerTask:
    """A row for a worker, which measures it unless there is an `action`.

    "load" loads what the row needs of libraries and its model's file; "prepare" builds
    the row, warms it up and keeps it; "sample" runs a generation of the row that is
    kept; "forget" frees it; "closeness" compares the row with its unquantized twin over
    `tokens` of the `text`, a file. Paths are absolute. `devices` are those of
    all rows of the run; they decide its environment. Ranks are told the `limit_s` after
    which the task is ended: they say before which of them it waits for.
    """

    row: RowSpec
    devices: tuple[str, ...]
    checkpoints: str | None = None
    slowdowns: tuple[tuple[str, float], ...] = ()
    damages: tuple[str, ...] = ()
    cold_compile: bool | None = None
    action: Action | None = None
    text: str | None = None
    tokens: int | None = None
    limit_s: float | None = None

    @property
    def to_send(self) -> "WorkerTask":
        """The task without the row's name and limits, which change no work.

        Older revisions do not know every limit, nor the name, nor schemes that a name
        is part of.
        """
        name = self.row.name if self.row.names_scheme else None
        return replace(self, row=replace(self.row, name=name, limits=None))


@record
class WorkerResult:
    """How the row ended; `environment` is None where the process itself broke."""

    result: RowResult
    environment: Environment | None

    def of_row(self, row: RowSpec) -> "WorkerResult":
        """The result with the name and the limits that the worker was not told."""
        whole = replace(self.result.row, name=row.name, limits=row.limits)
        return replace(self, result=replace(self.result, row=whole))


def without_figures(row: RowSpec, status: Status, reason: str) -> WorkerResult:
    """The end of a row, or of an action of it, that has no figures."""
    result = RowResult(id=row.id, row=row, status=status, reason=reason)
    return WorkerResult(result=result, environment=None)


@record
class WorkerReply:
    """A worker's reply: its progress, or the result of its row.

    An action ends with `times_ns`, the nanoseconds of the samples that it took, or with
    a result that says why it could not; "closeness" ends with that. `broken` says which
    of several ranks broke, and how: no other reply follows.
    """

    progress: str | None = None
    done: WorkerResult | None = None
    times_ns: tuple[int, ...] | None = None
    closeness: ClosenessResult | None = None
    broken: str | None = None


class RowEnded(Exception):
    """An action ended its row, with this result."""

    def __init__(self, result: WorkerResult) -> None:
        super().__init__(result.result.summary)
        self.result = result
