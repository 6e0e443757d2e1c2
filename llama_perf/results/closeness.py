"""Which changes of closeness are gains, and what a row that is recorded anew keeps."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from llama_perf.metric import Metric, Rule
from llama_perf.metrics import METRICS
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import MetricChange

CLOSENESS = {one.title: one for one in METRICS if one.rule is Rule.CLOSENESS}
"""The metrics of closeness by title."""


def closer(changes: Iterable[MetricChange]) -> list[tuple[Metric, MetricChange]]:
    """The changes of closeness that are better by more than their limits.

    There are none where another one is worse.
    """
    known = list(_of_closeness(changes))
    if any(change.worse for _, change in known):
        return []
    return [
        (metric, change)
        for metric, change in known
        if change.limit is not None
        and (change.change if metric.more_is_better else -change.change) > change.limit
    ]


def _of_closeness(
    changes: Iterable[MetricChange],
) -> Iterator[tuple[Metric, MetricChange]]:
    for change in changes:
        if (metric := CLOSENESS.get(change.metric)) is not None:
            yield metric, change


def with_closeness(now: Measurement, then: Measurement) -> Measurement:
    """`now`, with the closeness of an earlier one if it has none and reads the same.

    So recording a speed anew does not end the comparison of closeness.
    """
    if now.closeness is not None or now.weights != then.weights:
        return now
    return replace(now, closeness=then.closeness)
