"""The trends of a device's rows: their change points, and which of them fail a check.

Knows the figures of runs, and no files.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from llama_perf.gate import change_points
from llama_perf.metrics import PEAK_MEMORY, TOK_S
from llama_perf.results.history import KEPT_ENVIRONMENT, HistoryLine, by_row, moment
from llama_perf.results.trends import ChangePoint, Run, Trend

METRICS = (TOK_S, PEAK_MEMORY)
"""The metrics whose change points are looked for."""
LAST = 30
"""The runs of a row in which its newest change point fails a check."""


def trends(
    device_key: str,
    lines: Sequence[HistoryLine],
    *,
    least: float = change_points.LEAST,
    with_changes: bool = True,
) -> list[Trend]:
    """The trend of each row of a device; raises UserError without Otava."""
    return [
        Trend(
            device_key=device_key,
            id=row_id,
            lines=tuple(own),
            changes=tuple(_changes(own, least)) if with_changes else (),
        )
        for row_id, own in by_row(lines).items()
    ]


def _changes(lines: Sequence[HistoryLine], least: float) -> Iterator[ChangePoint]:
    calm = [line for line in lines if line.disturbed is None]
    for metric in METRICS:
        values = [metric.read(line) or 0.0 for line in calm]
        if not all(values):
            # A row may take no memory that is seen; such a series has no logarithm.
            continue
        for step in change_points.steps(values, least=least):
            before, after = calm[step.start - 1], calm[step.start]
            yield ChangePoint(
                metric=metric.title,
                old=step.old,
                new=step.new,
                change=step.change,
                is_loss=step.change < 0 if metric.more_is_better else step.change > 0,
                p_value=step.p_value,
                before=Run(started=before.started, commit=before.commit),
                after=Run(started=after.started, commit=after.commit),
                runs=len(calm) - step.start,
                environment=tuple(_environment_changes(before, after)),
            )


def _environment_changes(old: HistoryLine, new: HistoryLine) -> Iterator[str]:
    for name in KEPT_ENVIRONMENT:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{name}: {before or 'unknown'} -> {after or 'unknown'}"


def losses(
    trend: Trend, lines: Sequence[HistoryLine], *, last: int = LAST
) -> list[ChangePoint]:
    """The newest change point of each metric that is a loss in the `last` runs.

    `lines` are those of all rows of the device, by which runs are counted: a row that
    no run has any more does not fail forever.
    """
    newest = filter(None, map(trend.newest, METRICS))
    return [one for one in newest if one.is_loss and _runs_since(one, lines) <= last]


def _runs_since(change: ChangePoint, lines: Sequence[HistoryLine]) -> int:
    """The runs from a change on, of the row that has most: a run may be in shards."""
    since = moment(change.after.started)
    rows = Counter(line.id for line in lines if moment(line.started) >= since)
    return max(rows.values())
