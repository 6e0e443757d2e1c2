"""The quantity by which a row's speed is compared: same GPU, another one, a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.gate.baselines import baseline_row
from llama_perf.gate.confirmation import Trial
from llama_perf.gate.review import describe_speeds
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline, speed_in
from llama_perf.results.baseline import Baseline
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.fresh_processes import confirmation
from llama_perf.run.options import RunRequest
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    INT8_CPU,
    MEASUREMENT,
    baseline_of,
    compare,
    confirming_run,
    measured,
    unmeasured,
)

INT8_CUDA = replace(CUDA_ROW, quantization="int8wo")
CARD = replace(ENVIRONMENT, device_key="some-card", device_uuid="GPU-1", driver="580.1")
OTHER_CARD = replace(CARD, device_uuid="GPU-2")
# Speeds of a machine whose every process is as fast as its day: the ratio stands still.
DAYS = (1.0, 0.7, 1.3, 0.9, 1.2)


def baseline(
    speeds: dict[RowSpec, Sequence[float]],
    environment: Environment = ENVIRONMENT,
    bandwidths: Sequence[float] = (20.0,) * 5,
) -> Baseline:
    rows = []
    for row, tok_s in speeds.items():
        processes = [
            replace(MEASUREMENT, tok_s=rate, device_bandwidth_gb_s=bandwidth)
            for rate, bandwidth in zip(tok_s, bandwidths, strict=False)
        ]
        rows.append(baseline_row(row, *processes))
    return Baseline(recorded="then", environment=environment, rows=tuple(rows))


def on_days(row: RowSpec, quantized: RowSpec, environment: Environment) -> Baseline:
    return baseline(
        {
            row: [100 * day for day in DAYS],
            # A little noise of its own.
            quantized: [
                200 * day * by
                for day, by in zip(DAYS, (1, 1.01, 0.99, 1, 1), strict=True)
            ],
        },
        environment,
        [20 * day for day in DAYS],
    )


@pytest.mark.parametrize(
    ("row", "now", "wanted"),
    [
        (CUDA_ROW, CARD, [Basis.TOK_S]),
        (INT8_CUDA, CARD, [Basis.TOK_S]),
        (CUDA_ROW, OTHER_CARD, [Basis.BANDWIDTH]),
        (INT8_CUDA, OTHER_CARD, [Basis.RATIO, Basis.BANDWIDTH]),
        (INT8_CUDA, replace(CARD, driver="590.1"), [Basis.RATIO, Basis.BANDWIDTH]),
        (CPU_ROW, CARD, [Basis.BANDWIDTH]),
        (INT8_CPU, CARD, [Basis.RATIO]),
        (replace(CPU_ROW, kv_cache_quantization=True), CARD, [Basis.RATIO]),
    ],
)
def test_the_same_gpu_compares_tok_s_and_everything_else_ratios(
    row: RowSpec, now: Environment, wanted: list[Basis]
) -> None:
    stored = baseline_of(device_uuid="GPU-1", driver="580.1")
    assert SpeedBaseline(stored, now).bases(row) == wanted


def test_a_gpu_without_a_uuid_counts_as_another() -> None:
    unknown = replace(CARD, device_uuid=None)
    stored = baseline({CUDA_ROW: [100.0]}, unknown)
    assert SpeedBaseline(stored).bases(CUDA_ROW) == [Basis.BANDWIDTH]


def test_the_unquantized_row_is_the_one_most_like_it() -> None:
    compiled = replace(CPU_ROW, compile=True)
    long = replace(CPU_ROW, compile=True, cache_size=4096)
    other_model = replace(compiled, model="other")
    batch = replace(compiled, batch_size=8)
    wanted = replace(long, quantization="fp6", kernels="native")
    rows = [CPU_ROW, other_model, batch, compiled, long, wanted]
    stored = baseline_of(*map(measured, rows))
    assert SpeedBaseline(stored).unquantized_row(wanted.id) == stored.rows[4]
    rest = tuple(row for row in stored.rows if row.row != long)
    without = SpeedBaseline(replace(stored, rows=rest))
    assert without.unquantized_row(wanted.id) == stored.rows[3]
    others = baseline_of(measured(wanted), measured(batch), measured(other_model))
    assert SpeedBaseline(others).unquantized_row(wanted.id) is None


def test_rows_that_were_recorded_apart_do_not_make_a_ratio() -> None:
    stored = baseline({CPU_ROW: [100.0], INT8_CPU: [200.0]})
    older = replace(stored.rows[0], recorded="earlier")
    apart = replace(stored, rows=(older, stored.rows[1]))
    assert SpeedBaseline(apart).unquantized_row(INT8_CPU.id) is None
    comparison = compare(measured(INT8_CPU, tok_s=200.0), apart, unquantized=measured())
    assert "no unquantized row was recorded with it" in comparison.reason


def test_values_are_taken_process_by_process() -> None:
    stored = on_days(CPU_ROW, INT8_CPU, ENVIRONMENT)
    speeds, (unquantized, int8) = SpeedBaseline(stored), stored.rows
    assert speeds.values(Basis.TOK_S, int8.id) == [
        process.tok_s for process in int8.processes or ()
    ]
    ratios = speeds.values(Basis.RATIO, int8.id)
    assert ratios == pytest.approx([2.0, 2.02, 1.98, 2.0, 2.0])
    by_bandwidth = speeds.values(Basis.BANDWIDTH, unquantized.id)
    assert by_bandwidth == pytest.approx([5.0] * 5)
    without = SpeedBaseline(replace(stored, rows=(int8,)))
    assert without.values(Basis.RATIO, int8.id) is None
    one = replace(baseline_row(INT8_CPU, MEASUREMENT), recorded=unquantized.recorded)
    of_one = SpeedBaseline(replace(stored, rows=(unquantized, one)))
    assert of_one.values(Basis.RATIO, one.id) == [1.0]
    unknown = baseline_row(
        CPU_ROW, *[replace(MEASUREMENT, device_bandwidth_gb_s=None)] * 3
    )
    of_unknown = SpeedBaseline(replace(stored, rows=(unknown,)))
    assert of_unknown.values(Basis.BANDWIDTH, unknown.id) is None
    assert speed_in(Basis.RATIO, MEASUREMENT, None) is None


def test_a_ratio_does_not_move_with_the_machine() -> None:
    stored = on_days(CPU_ROW, INT8_CPU, ENVIRONMENT)
    speeds = SpeedBaseline(stored)
    assert speeds.speed(Basis.RATIO, CPU_ROW.id) is None
    ratio = speeds.speed(Basis.RATIO, INT8_CPU.id)
    rate = speeds.speed(Basis.TOK_S, INT8_CPU.id)
    assert ratio is not None
    assert rate is not None
    assert ratio.spread.deviation < 0.02
    assert rate.spread.deviation > 0.2
    slow_day = measured(tok_s=50.0, device_bandwidth_gb_s=10.0)
    for tok_s, verdict in ((100.0, Verdict.SAME), (80.0, Verdict.UNDECIDED)):
        now = measured(INT8_CPU, tok_s=tok_s)
        assert compare(now, stored, unquantized=slow_day).verdict is verdict
    unquantized = compare(slow_day, stored)
    assert unquantized.verdict is Verdict.SAME
    assert unquantized.changes[0].change == pytest.approx(-0.5, abs=0.05)
    assert unquantized.changes[0].limit is None


def test_a_quantized_row_without_the_unquantized_is_compared_by_bandwidth() -> None:
    stored = on_days(CPU_ROW, INT8_CPU, ENVIRONMENT)
    comparison = compare(measured(INT8_CPU, tok_s=200.0), stored)
    assert comparison.verdict is Verdict.SAME
    assert "tok/s per GB/s of the device" in comparison.reason
    assert comparison.reason.endswith(
        "; its unquantized row was not measured before it in this run"
    )
    elsewhere = on_days(CUDA_ROW, INT8_CUDA, CARD)
    now = measured(INT8_CUDA, tok_s=200.0)
    twice = compare(now, elsewhere, environment=OTHER_CARD)
    assert [change.metric for change in twice.changes].count(Basis.BANDWIDTH.value) == 1
    unknown = compare(measured(INT8_CPU, device_bandwidth_gb_s=None), stored)
    assert "; the device's bandwidth is not known" in unknown.reason


def test_on_another_card_of_the_model_either_ratio_fails_the_row() -> None:
    stored = on_days(CUDA_ROW, INT8_CUDA, CARD)
    unquantized = measured(CUDA_ROW, tok_s=90.0, device_bandwidth_gb_s=18.0)

    def judged(tok_s: float, bandwidth: float) -> Verdict:
        now = measured(INT8_CUDA, tok_s=tok_s, device_bandwidth_gb_s=bandwidth)
        trials = [Trial(row=now, unquantized=unquantized)] * 5
        return compare(
            now, stored, environment=OTHER_CARD, unquantized=unquantized, fresh=trials
        ).verdict

    assert judged(180.0, 18.0) is Verdict.SAME
    assert judged(150.0, 18.0) is Verdict.SLOWER
    # The unquantized row lost as much, so only the bandwidth shows the loss.
    assert judged(180.0, 25.0) is Verdict.SLOWER


def test_the_same_gpu_is_judged_by_tok_s_whatever_its_bandwidth() -> None:
    stored = baseline({CUDA_ROW: (100, 101, 99, 100, 100)}, CARD)
    now = measured(CUDA_ROW, tok_s=100.0, device_bandwidth_gb_s=99.0)
    comparison = compare(now, stored, environment=CARD)
    assert comparison.verdict is Verdict.SAME
    assert [change.metric for change in comparison.changes][:2] == [
        "tok/s",
        "peak memory",
    ]


def test_a_run_hands_on_what_the_run_measured(tmp_path: Path) -> None:
    stored = on_days(CPU_ROW, INT8_CPU, ENVIRONMENT)
    asked: list[tuple[RowSpec, RowSpec | None]] = []

    def confirm(row: RowSpec, unquantized: RowSpec | None) -> list[Trial]:
        asked.append((row, unquantized))
        return [Trial(row=measured(row, tok_s=100.0), unquantized=measured())] * 5

    run = confirming_run(stored, tmp_path, confirm)
    run.add(measured())
    comparison = run.add(measured(INT8_CPU, tok_s=100.0))
    assert comparison.verdict is Verdict.SLOWER
    assert asked == [(INT8_CPU, CPU_ROW)]
    assert "tok/s over the unquantized row's 2." in comparison.reason
    assert "; confirmed by 5 fresh processes: 1.000 (-50" in comparison.reason


@pytest.mark.parametrize("breaks", [None, CPU_ROW.id, INT8_CPU.id])
def test_a_confirmation_runs_both_in_turn_and_ends_where_one_breaks(
    monkeypatch: pytest.MonkeyPatch, breaks: str | None
) -> None:
    ran = []

    def run(row: RowSpec, **_arguments: object) -> worker.WorkerResult:
        ran.append(row)
        result = measured(row)
        if row.id == breaks:
            result = unmeasured(Status.INVALID, "it broke", row)
        return worker.WorkerResult(result=result, environment=None)

    monkeypatch.setattr(worker, "run_in_process", run)
    trials = confirmation(INT8_CPU, CPU_ROW, options=RunRequest())
    pair = [INT8_CPU, CPU_ROW]
    if breaks is None:
        assert ran == [*pair, *pair[::-1]] * 2 + pair
        assert [trial.missed for trial in trials] == [None] * 5
    else:
        assert ran == pair
        assert [trial.missed and trial.missed.id for trial in trials] == [breaks]


def test_the_description_of_a_baseline_names_the_judged_quantity() -> None:
    lines = describe_speeds(on_days(CPU_ROW, INT8_CPU, ENVIRONMENT))
    assert "in tok/s per GB/s of the device" in lines[0]
    assert "in tok/s over the unquantized row's" in lines[1]
    lines = describe_speeds(on_days(CUDA_ROW, INT8_CUDA, CARD))
    assert all("% in tok/s, " in line for line in lines)


def test_a_row_result_is_no_unquantized_row_of_itself() -> None:
    result: RowResult = measured()
    stored = baseline({CPU_ROW: [100.0, 101.0, 99.0]})
    assert compare(result, stored, unquantized=result).changes[1].metric == (
        Basis.BANDWIDTH.value
    )
