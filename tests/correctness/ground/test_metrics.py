"""The table of metrics: every entry can be read, and the documents follow it."""

from dataclasses import replace
from operator import attrgetter

import pytest

from llama_perf.metric import Metric, Rule
from llama_perf.metrics import LIMIT_FIELDS, METRICS
from llama_perf.results.measurement import MemoryParts, StepWork, ValueCheck
from tests.correctness.support.record_samples import CLOSENESS, MEASUREMENT, RANKS

FALLBACKS = {metric.column.fallback for metric in METRICS if metric.column}
EVERY_FIELD = replace(
    MEASUREMENT,
    peak_allocated_bytes=1,
    token_ns=((8_000_000,) * 500,),
    memory=MemoryParts(weights_bytes=9, cache_bytes=10),
    ranks=RANKS,
    closeness_db=11.0,
    closeness=CLOSENESS,
    graph_breaks=2,
    compilations=3,
    compile_s=12.0,
    step=StepWork(calls=4.0, ms=5.0, operators=(), host_waits=13.0),
    check=ValueCheck(
        signal_to_noise_db=6.0, least_db=7.0, against="b", tokens=8, ties=0, seconds=0.1
    ),
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.title)
def test_a_metric_is_read_from_a_field_of_a_measurement(metric: Metric) -> None:
    assert metric.read(EVERY_FIELD) is not None
    assert metric.read(EVERY_FIELD) == attrgetter(metric.source)(EVERY_FIELD)
    compared = metric.rule not in {Rule.SHOWN, Rule.REPORTED}
    # Some figures of closeness only stand beside those that decide.
    is_shown = metric.column is not None or metric.source in FALLBACKS
    assert bool(metric.limits) == compared or (metric.rule is Rule.CLOSENESS)
    assert is_shown or compared


def test_no_two_metrics_and_no_two_limits_share_a_name() -> None:
    assert len({metric.title for metric in METRICS}) == len(METRICS)
    assert len(LIMIT_FIELDS) == sum(len(metric.limits) for metric in METRICS)
