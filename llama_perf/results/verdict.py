"""The verdict on one row, with its reason and the metrics that led to it."""

from enum import Enum

from llama_perf.strict_json import record


class Verdict(Enum):
    """The result of comparing a row with its baseline."""

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
    """The change of one metric since the baseline.

    `change` is current / baseline - 1. Beyond `limit`, a share, the metric is worse;
    without one it is only reported.
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

    `why` has the operators of a decoding step that grew, for a row that failed.
    `suspicious` and `suspicious_peak` say that the run's own process became slower, or
    larger, by more than the limit, whatever fresh processes showed afterwards.
    `minimum_detectable` is the loss of speed, as a share, that a run detects nine times
    in ten; None if the baseline has too few processes to know.
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
        """Whether fresh processes have to decide on the row."""
        return self.suspicious or self.suspicious_peak
