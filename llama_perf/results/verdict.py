"""The verdict on one row, with its reason and the metrics that led to it."""

from __future__ import annotations

from enum import Enum

from llama_perf.strict_json import record


class Verdict(Enum):
    """What the comparison with a baseline says of a row."""

    SAME = "SAME"
    FASTER = "FASTER"
    SMALLER = "SMALLER"
    SLOWER = "SLOWER"
    LARGER = "LARGER"
    UNDECIDED = "UNDECIDED"
    NO_BASELINE = "NO_BASELINE"
    INCOMPARABLE = "INCOMPARABLE"
    INVALID = "INVALID"
    NOT_RUN = "NOT_RUN"
    NOT_COMPARED = "NOT_COMPARED"


@record
class MetricChange:
    """One metric of a row beside its baseline.

    `change` is current / baseline - 1; `limit` is the change from which on the
    metric counts as worse, or None where it is only reported.
    """

    metric: str
    baseline: float
    current: float
    change: float
    limit: float | None
    worse: bool


@record
class Comparison:
    """The verdict on one row, with its reason in words.

    `why`: of a row that lost, which operators of a step grew and what to run again.
    `suspicious` says that its one process lost more speed than the screen allows,
    `suspicious_peak` that its peak memory grew beyond the limit, whatever the fresh
    processes said then, and `minimum_detectable` is the loss of speed, as a share, that
    a run finds nine times in ten; None where the baseline has too few processes to
    tell.
    """

    id: str
    verdict: Verdict
    reason: str
    failed: bool
    changes: tuple[MetricChange, ...] = ()
    why: tuple[str, ...] = ()
    suspicious: bool = False
    suspicious_peak: bool = False
    minimum_detectable: float | None = None

    @property
    def doubtful(self) -> bool:
        """Whether fresh processes are, or were, to decide."""
        return self.suspicious or self.suspicious_peak
