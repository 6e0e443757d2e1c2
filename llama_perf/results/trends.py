"""How the rows of histories went: their figures run by run, and where these changed."""

from typing import Literal

from llama_perf.metric import Metric
from llama_perf.results.history import HistoryLine
from llama_perf.strict_json import record


@record
class Run:
    """Which run it was: when it started, and of which commit."""

    started: str
    commit: str | None = None

    @property
    def summary(self) -> str:
        """Both in a few words."""
        return f"{self.started[:16]} ({self.commit or 'commit unknown'})"


@record
class ChangePoint:
    """Where a row's figures changed for good: from one run to the next one.

    `old` and `new` are the medians of the runs on both sides, up to the neighbouring
    change points; `change` is new / old - 1. `p_value` is that of a t-test. `runs`
    counts the runs from `after` on that were not disturbed. `environment` are the
    libraries and the driver that changed between the two runs.
    """

    metric: str
    old: float
    new: float
    change: float
    is_loss: bool
    p_value: float
    before: Run
    after: Run
    runs: int
    environment: tuple[str, ...] = ()


@record
class Trend:
    """A row of one device: its runs by time, and its change points by time."""

    device_key: str
    id: str
    lines: tuple[HistoryLine, ...]
    changes: tuple[ChangePoint, ...] = ()

    @property
    def calm(self) -> tuple[HistoryLine, ...]:
        """The runs that were not disturbed."""
        return tuple(line for line in self.lines if line.disturbed is None)

    def newest(self, metric: Metric) -> ChangePoint | None:
        """The last change point of a metric, None where there is none."""
        own = [one for one in self.changes if one.metric == metric.title]
        return own[-1] if own else None


@record
class Trends:
    """The rows of the histories of some devices.

    `last` counts the runs that a table covers. `note` says what a reader has to know of
    all of them.
    """

    kind: Literal["llama-perf trends"] = "llama-perf trends"
    schema_version: Literal[1] = 1
    last: int
    rows: tuple[Trend, ...]
    note: str | None = None
