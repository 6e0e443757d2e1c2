"""The limits of a row, and the change of a metric in words."""

from __future__ import annotations

from fnmatch import fnmatchcase

from llama_perf.gate.thresholds import relative_change
from llama_perf.metrics import LIMIT_FIELDS, METRICS, Metric, Rule
from llama_perf.results.verdict import MetricChange
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec

_BY_TITLE = {metric.title: metric for metric in METRICS}
_SPEED_RATIO = Metric("any other", "tok_s", Rule.SPEED, more_is_better=True)


def default_limits(device: str) -> Limits:
    """The limits of a device, before a project or a row sets others."""
    return Limits({name: limit.on(device) for name, limit in LIMIT_FIELDS.items()})


def limits_of(row: RowSpec, project: ProjectLimits = ()) -> Limits:
    """A row's limits: its device's, then the project's, then its own."""
    overrides = [limits for glob, limits in project if fnmatchcase(row.id, glob)]
    return default_limits(row.device).changed((*overrides, row.limits))


def metric_change(
    title: str, before: float, now: float, limit: float | None = None
) -> MetricChange:
    """The change from `before`, which is positive, to `now`.

    It is worse if it exceeds `limit`, a share, in the bad direction. A title that is no
    metric's is that of a ratio of speeds.
    """
    share = relative_change(now, before)
    loss = -share if _BY_TITLE.get(title, _SPEED_RATIO).more_is_better else share
    return MetricChange(
        metric=title,
        baseline=before,
        current=now,
        change=share,
        limit=limit,
        worse=limit is not None and loss > limit,
    )


def describe(moved: MetricChange) -> str:
    """A change in words: the value before, the value now, the change, the limit."""
    shown = _BY_TITLE.get(moved.metric, _SPEED_RATIO).shown
    limit = "" if moved.limit is None else f", limit {moved.limit:.1%}"
    return (
        f"{moved.metric} {shown(moved.baseline)} -> {shown(moved.current)}"
        f" ({moved.change:+.1%}{limit})"
    )
