"""Two recordings compared whose rows have a measured closeness, or a quick one."""

from llama_perf.gate.diff import diff_of
from llama_perf.results.baselines import Baseline
from llama_perf.results.diff import DiffRow
from llama_perf.results.recording import of_baseline
from llama_perf.results.run import Verdict
from tests.correctness.support.record_samples import (
    INT8_CPU,
    baseline_of,
    close,
    measured,
)


def compared(*documents: Baseline) -> DiffRow:
    """The only row of both."""
    (row,) = diff_of([of_baseline(one, source="it") for one in documents]).rows
    return row


def verdict(row: DiffRow) -> Verdict:
    assert row.comparison is not None
    return row.comparison.verdict


def test_a_lost_closeness_is_worse_beside_any_speed() -> None:
    title = "closeness to the twin (dB)"
    worse = compared(baseline_of(close()), baseline_of(close(db=9.0)))
    assert verdict(worse) is Verdict.WORSE
    found = worse.metric(title)
    assert (found.values, found.limit, found.worse) == ((12.0, 9.0), 1.0, True)
    closer = compared(baseline_of(close()), baseline_of(close(db=14.0)))
    assert verdict(closer) is Verdict.SAME
    assert (closer.metric(title).beyond, closer.metric(title).worse) == (True, False)


def test_a_quick_closeness_is_compared_only_with_quick_ones() -> None:
    title = "closeness to the twin (dB)"
    quick = baseline_of(measured(INT8_CPU, closeness_db=27.8))
    assert compared(quick, quick).metric(title).values == (27.8, 27.8)
    mixed = compared(quick, baseline_of(close()))
    assert mixed.metric(title).values == (None, 12.0)
