"""Two recordings compared: the verdict on each row, and by which limit."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llama_perf.gate import thresholds
from llama_perf.gate.diff import diff_of
from llama_perf.gate.thresholds import as_share
from llama_perf.metrics import PEAK_MEMORY, TOK_S
from llama_perf.results.baselines import Baseline
from llama_perf.results.diff import Diff, DiffRow
from llama_perf.results.measurement import StepWork, SystemLoad
from llama_perf.results.recording import Recording, of_baseline, of_report
from llama_perf.results.run import Environment, Report, Status, Verdict
from llama_perf.rows.limit_overrides import Limits
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    INT8_CPU,
    OTHER,
    baseline_of,
    baseline_of_processes,
    measured,
    report_of,
    unmeasured,
)

INT8_CUDA = replace(CUDA_ROW, quantization="int8wo")
CARD = replace(ENVIRONMENT, device_key="some-card", device_uuid="GPU-1", driver="580.1")


def recorded(document: Baseline | Report, source: str = "it") -> Recording:
    read: Any = of_report if isinstance(document, Report) else of_baseline
    found: Recording = read(document, source=source)
    return found


def compared(*documents: Baseline | Report, **options: Any) -> Diff:
    return diff_of([recorded(document) for document in documents], **options)


def verdict(row: DiffRow) -> Verdict:
    assert row.comparison is not None
    return row.comparison.verdict


def on_card(speeds: Sequence[float], **changes: Any) -> Baseline:
    return baseline_of_processes({CUDA_ROW: speeds}, environment=CARD, **changes)


def only(diff: Diff) -> DiffRow:
    (row,) = diff.rows
    return row


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.0, "SAME"), (0.97, "SAME"), (0.9, "SLOWER"), (1.03, "SAME"), (1.1, "FASTER")],
)
def test_several_processes_are_judged_by_their_noise(
    factor: float, expected: str
) -> None:
    after = on_card([factor * speed for speed in ALIKE])
    row = only(compared(on_card(ALIKE), after))
    assert verdict(row).value == expected
    assert row.processes == (5, 5)
    assert row.speed is not None
    assert row.speed.by == "noise"
    own = thresholds.between_processes([math.log(speed) for speed in ALIKE])
    both = thresholds.difference(own, own, (5, 5))
    assert both is not None
    limit = as_share(thresholds.difference_limit(both))
    assert row.speed.limit == pytest.approx(limit)
    speed = row.metric(TOK_S.title)
    assert speed.changes[1] == pytest.approx(factor - 1)
    assert speed.limit == pytest.approx(limit)
    assert speed.worse == (expected == "SLOWER")
    assert row.speed.found is not None
    assert row.speed.found > limit


@pytest.mark.parametrize(
    ("row", "lost", "expected"),
    [
        (CUDA_ROW, 0.04, "SAME"),
        (CUDA_ROW, 0.06, "SLOWER"),
        (CUDA_ROW, -0.06, "FASTER"),
        (CPU_ROW, 0.2, "SAME"),
        (CPU_ROW, 0.3, "SLOWER"),
    ],
)
def test_a_process_each_has_the_fixed_limit_of_its_device(
    row: Any, lost: float, expected: str
) -> None:
    environment = CARD if row is CUDA_ROW else ENVIRONMENT
    sides = (
        report_of(measured(row, tok_s=speed), environment=environment)
        for speed in (100.0, 100 * (1 - lost))
    )
    found = only(compared(*sides))
    assert verdict(found).value == expected
    assert found.speed is not None
    assert (found.speed.by, found.speed.limit) == (
        ("fixed", 0.05) if row is CUDA_ROW else ("fixed", 0.25)
    )


def test_a_users_limits_hold() -> None:
    sides = (baseline_of(measured()), baseline_of(measured(tok_s=90.0)))
    project = (("*", Limits({"tok_s": 0.05})),)
    assert verdict(only(compared(*sides))) is Verdict.SAME
    assert verdict(only(compared(*sides, project=project))) is Verdict.SLOWER
    own = compared(*sides, limit=0.05)
    assert verdict(only(own)) is Verdict.SLOWER
    speed = only(own).speed
    assert speed is not None
    assert (speed.by, speed.limit, speed.metric) == ("--limit", 0.05, TOK_S.title)
    assert not compared(*sides, limit=0.11).failed
    grown = baseline_of(measured(peak_memory_bytes=1_020_000_000))
    assert not compared(sides[0], grown).failed
    # A row of one process may have what earlier rows left: nothing confirmed it.
    assert verdict(only(compared(sides[0], grown, limit=0.01))) is Verdict.LARGER


def test_the_noise_never_makes_a_limit_below_the_least_loss() -> None:
    steady = on_card([100.0, 100.001, 100.0, 100.001])
    found = only(compared(steady, on_card([99.5, 99.501, 99.5])))
    assert found.speed is not None
    assert (found.speed.by, verdict(found)) == ("least_loss", Verdict.SAME)
    assert found.speed.limit == pytest.approx(0.01)


def test_rows_so_noisy_that_nothing_is_found_are_the_same() -> None:
    wild = on_card([1.0, 100.0, 10_000.0])
    for factor in (1e-3, 1e3):
        other = on_card([factor * speed for speed in (1.0, 100.0, 10_000.0)])
        found = only(compared(wild, other))
        assert verdict(found) is Verdict.SAME
        assert found.speed is not None
        assert found.speed.limit == pytest.approx(1.0)


def test_of_two_ratios_the_one_nearest_to_its_loss_is_shown() -> None:
    # On another card of the model, the ratio to the unquantized row is noisy.
    then, now = (
        baseline_of_processes(
            {CUDA_ROW: speeds, INT8_CUDA: [2 * speed for speed in ALIKE]},
            environment=replace(CARD, device_uuid=uuid),
            bandwidths=[20 * factor for _ in ALIKE],
        )
        for uuid, factor, speeds in (
            ("GPU-1", 1.0, (80.0, 120.0, 90.0, 110.0, 100.0)),
            ("GPU-2", 1.1, (100.0, 150.0, 112.0, 137.0, 125.0)),
        )
    )
    found = compared(then, now).rows[1]
    assert verdict(found) is Verdict.SLOWER
    assert found.speed is not None
    # The other one lost more, and less than its limit.
    assert found.speed.metric == "tok/s per GB/s of the device"


def test_a_row_of_a_cpu_is_judged_by_its_ratio() -> None:
    days = (1.0, 0.7, 1.3, 0.9, 1.2)

    def of_day(day: float, int8: float) -> Baseline:
        speeds = {
            CPU_ROW: [100 * day * one for one in days],
            INT8_CPU: [int8 * day * one for one in days],
        }
        return baseline_of_processes(
            speeds, bandwidths=[20 * day * one for one in days]
        )

    slow_day = compared(of_day(1, 200), of_day(0.5, 200))
    assert [verdict(row) for row in slow_day.rows] == [Verdict.SAME] * 2
    lost = compared(of_day(1, 200), of_day(1, 180))
    assert [verdict(row) for row in lost.rows] == [Verdict.SAME, Verdict.SLOWER]
    speed = lost.rows[1].speed
    assert speed is not None
    assert speed.metric == "tok/s over the unquantized row's"
    # Without its unquantized row it is the bandwidth.
    alone = compared(of_day(1, 200), baseline_of_processes({INT8_CPU: [180.0] * 5}))
    (row,) = (row for row in alone.rows if row.id == INT8_CPU.id)
    assert row.comparison is not None
    assert "its unquantized row was not measured with it" in row.comparison.reason
    assert alone.sides[0].only == (CPU_ROW.id,)


def step(calls: float) -> StepWork:
    return StepWork(calls=calls, ms=1.0, operators=())


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        ({"peak_memory_bytes": 1_200_000_000}, "peak memory"),
        ({"model_size_bytes": 510_000_000}, "model size"),
        ({"peak_allocated_bytes": 920_000_000}, "allocated memory"),
        ({"step": step(103)}, "calls a step"),
        ({"graph_breaks": 1}, "graph breaks"),
    ],
)
def test_memory_and_counts_have_the_rules_of_the_gate(
    change: dict[str, Any], metric: str
) -> None:
    known: dict[str, Any] = {
        "peak_allocated_bytes": 900_000_000,
        "step": step(100),
        "graph_breaks": 0,
    }
    then, now = (baseline_of(measured(**known | more)) for more in ({}, change))
    row = only(compared(then, now))
    assert verdict(row) is Verdict.LARGER
    assert [one.metric for one in row.metrics if one.worse] == [metric]
    back = only(compared(now, then))
    assert verdict(back) in {Verdict.SAME, Verdict.SMALLER}
    assert [one.metric for one in back.metrics if one.beyond] == [metric]
    assert not any(one.worse for one in back.metrics)


def test_a_peak_that_nothing_confirms_is_undecided() -> None:
    fresh = on_card(ALIKE)
    grown = measured(CUDA_ROW, peak_memory_bytes=1_200_000_000)
    diff = compared(fresh, report_of(grown, environment=CARD))
    assert verdict(only(diff)) is Verdict.UNDECIDED
    assert diff.failed
    confirmed = on_card(ALIKE, peak_memory_bytes=1_200_000_000)
    assert verdict(only(compared(fresh, confirmed))) is Verdict.LARGER
    peak = only(compared(fresh, confirmed)).metric(PEAK_MEMORY.title)
    assert (peak.values, peak.worse) == ((1e9, 1.2e9), True)


def test_other_weights_and_another_row_are_incomparable_and_fail() -> None:
    then = baseline_of(measured())
    other = compared(then, baseline_of(measured(weights="trained")))
    changed = replace(then, rows=(replace(then.rows[0], fingerprint="0" * 16),))
    for diff, words in (
        (other, "other weights: synthetic in the baseline, trained now"),
        (compared(then, changed), "the row changed under its id"),
    ):
        row = only(diff)
        assert (verdict(row), diff.failed) == (Verdict.INCOMPARABLE, True)
        assert row.comparison is not None
        assert row.comparison.reason.startswith(words)
        assert not any(metric.worse for metric in row.metrics)
    # What both stored under one fingerprint is one row.
    assert verdict(only(compared(changed, changed))) is Verdict.SAME


def test_other_devices_are_shown_and_not_judged() -> None:
    elsewhere = replace(ENVIRONMENT, device_key="cpu-other")
    slow = baseline_of_processes(
        {CPU_ROW: [10.0] * 3}, environment=elsewhere, bandwidths=[2.0] * 3
    )
    diff = compared(baseline_of(measured()), slow)
    assert (verdict(only(diff)), diff.failed) == (Verdict.INCOMPARABLE, False)
    assert only(diff).metric(TOK_S.title).changes[1] == pytest.approx(-0.9)
    assert only(diff).metric(TOK_S.title).limit is None
    assert diff.sides[1].changes == ("device_key: cpu-some-2c -> cpu-other",)
    # Nor does its bandwidth say that the row was disturbed.
    assert only(diff).disturbed == ("", "")


BROKEN = unmeasured(Status.INVALID, "it broke")
NOT_RUN = unmeasured(Status.NOT_RUN, "no room")


@pytest.mark.parametrize(
    ("then", "now", "expected", "failed"),
    [
        (measured(), BROKEN, "INVALID", True),
        (measured(), NOT_RUN, "NOT_RUN", True),
        (BROKEN, BROKEN, "INVALID", False),
        (NOT_RUN, BROKEN, "INVALID", False),
        (NOT_RUN, NOT_RUN, "NOT_RUN", False),
        (BROKEN, measured(), "NO_BASELINE", False),
    ],
)
def test_what_was_not_measured_fails_where_it_was_before(
    then: Any, now: Any, expected: str, failed: bool
) -> None:
    diff = compared(report_of(then), report_of(now))
    assert (verdict(only(diff)).value, diff.failed) == (expected, failed)
    assert only(diff).statuses == (then.status, now.status)


def test_a_disturbed_side_decides_nothing() -> None:
    load = SystemLoad(seconds=1.0, cores=2, threads=2, other_cores=1.0)

    def run(tok_s: float, load: SystemLoad | None) -> Report:
        return report_of(measured(tok_s=tok_s, load=load))

    slow = compared(run(100, None), run(50, load))
    assert (verdict(only(slow)), slow.failed) == (Verdict.UNDECIDED, True)
    assert only(slow).disturbed[0] == ""
    assert "other processes took" in only(slow).disturbed[1]
    fast = only(compared(run(50, load), run(100, None)))
    assert verdict(fast) is Verdict.SAME
    assert fast.comparison is not None
    assert "looks faster than it, which was disturbed" in fast.comparison.reason
    # The last is slower even than a disturbed first.
    assert verdict(only(compared(run(100, load), run(50, None)))) is Verdict.SLOWER


def test_more_than_two_are_columns_and_the_last_is_judged_by_the_first() -> None:
    third = baseline_of(measured(tok_s=60.0), measured(OTHER))
    diff = compared(baseline_of(measured()), baseline_of(measured(tok_s=10.0)), third)
    row = only(diff)
    assert verdict(row) is Verdict.SLOWER
    speed = row.metric(TOK_S.title)
    assert speed.values == pytest.approx((100.0, 10.0, 60.0))
    assert speed.changes[0] is None
    assert speed.changes[1:] == pytest.approx((-0.9, -0.4))
    assert [side.only for side in diff.sides] == [(), (), (OTHER.id,)]
    # The middle one does not matter; a row that the first lacks is not judged.
    again = compared(baseline_of(measured()), third, third)
    assert [row.comparison is None for row in again.rows] == [False, True]
    assert again.rows[1].statuses == (None, Status.MEASURED, Status.MEASURED)
    chosen = compared(third, third, ids={OTHER.id})
    assert [row.id for row in chosen.rows] == [OTHER.id]


def test_environments_that_differ_are_listed() -> None:
    newer: Environment = replace(ENVIRONMENT, torch="3.0.0", commit="f")
    diff = compared(baseline_of(measured()), report_of(measured(), environment=newer))
    assert diff.sides[1].changes == (
        "torch: 2.13.0 -> 3.0.0",
        "commit: 0123456789ab -> f",
    )
    assert diff.changed().rows == ()
    assert diff.changed().differs
    same = compared(baseline_of(measured()), baseline_of(measured()))
    assert not same.changed().differs
