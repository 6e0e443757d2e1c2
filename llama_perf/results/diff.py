"""What `llama-perf diff` found: the metrics of each row in several recordings.

Knows the records, and nothing of how a change is judged.
"""

from dataclasses import replace
from typing import Literal, TypeAlias

from llama_perf.results.run import Comparison, Environment, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import record

LimitBy: TypeAlias = Literal["noise", "least_loss", "fixed", "--limit"]
"""What a limit of speed follows from: the noise between processes, the loss that never
counts, the fixed limit for too few processes, or the user's own."""


@record
class DiffSide:
    """One of the recordings. `only` are ids of rows that no other one has.

    `changes` are the fields of its environment that differ from the first one's.
    """

    source: str
    recorded: str
    environment: Environment
    note: str | None = None
    changes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@record
class DiffMetric:
    """One metric of a row in each recording, None where it is not known.

    `changes` are from the first recording, as shares; None where there is none, as from
    0. `limit` is that of the last one's change: a share, or so many more where the
    metric is a count. Without it the change is only shown. `beyond` says that the last
    one changed by more than its limit, `worse` that this is a loss.
    """

    metric: str
    values: tuple[float | None, ...]
    changes: tuple[float | None, ...]
    limit: float | None = None
    beyond: bool = False
    worse: bool = False


@record
class SpeedLimit:
    """The limit by which the speed of a row was judged, a share.

    `metric` is what was compared, which is tok/s or a ratio of it; `change` is its
    change, and `found` the loss of it that is found 9 times in 10, if that is known.
    """

    metric: str
    change: float
    limit: float
    by: LimitBy
    found: float | None = None


@record
class DiffRow:
    """One row that two or more recordings have.

    `statuses` say how it ended in each, None where it is missing; `processes` how many
    measured it; `disturbed` by what it was disturbed there, in words, empty where it
    was by nothing. `comparison` judges the last recording by the first, None where one
    of them lacks the row.
    """

    id: str
    row: RowSpec
    statuses: tuple[Status | None, ...]
    processes: tuple[int, ...]
    disturbed: tuple[str, ...]
    metrics: tuple[DiffMetric, ...]
    speed: SpeedLimit | None = None
    comparison: Comparison | None = None

    def metric(self, title: str) -> DiffMetric:
        """The metric of a title that `metrics.py` has."""
        return next(metric for metric in self.metrics if metric.metric == title)

    @property
    def is_equal(self) -> bool:
        """Whether every recording has the row, measured alike to the last digit."""
        return (
            self.comparison is not None
            and self.comparison.verdict.value == "SAME"
            and len({*self.statuses}) == 1
            and len({*self.processes}) == 1
            and all(len({*metric.values}) == 1 for metric in self.metrics)
        )


@record
class Diff:
    """Two or more recordings, row by row. `limit` is the user's own, a share."""

    kind: Literal["llama-perf diff"] = "llama-perf diff"
    schema_version: Literal[1] = 1
    sides: tuple[DiffSide, ...]
    rows: tuple[DiffRow, ...]
    limit: float | None = None

    def changed(self) -> "Diff":
        """Without the rows whose figures are the same in every recording."""
        return replace(self, rows=tuple(row for row in self.rows if not row.is_equal))

    @property
    def differs(self) -> bool:
        """Whether any row, or what a recording says of itself, differs."""
        return bool(self.rows) or any(side.changes or side.only for side in self.sides)

    @property
    def failed(self) -> bool:
        """Whether any row lost more than its limits allow, or cannot be compared."""
        return any(row.comparison and row.comparison.failed for row in self.rows)
