"""The speeds by which a baseline is compared, on which device, and its review."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.gate.evidence import Trial
from llama_perf.gate.review import describe_speeds, problems
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline, baseline_row
from llama_perf.results.run import Environment, Verdict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    INT8_CPU,
    MEASUREMENT,
    OTHER,
    baseline_of,
    baseline_of_processes,
    compare,
    measured,
    stored_in,
)

INT8_CUDA = replace(CUDA_ROW, quantization="int8wo")
CARD = replace(ENVIRONMENT, device_key="some-card", device_uuid="GPU-1", driver="580.1")
OTHER_CARD = replace(CARD, device_uuid="GPU-2")
# Speeds of a machine whose every process is as fast as its day: the ratio stands still.
DAYS = (1.0, 0.7, 1.3, 0.9, 1.2)
# The quantized row has a little noise of its own.
INT8_DAYS = (1.0, 0.7 * 1.01, 1.3 * 0.99, 0.9, 1.2)


STORED, ON_CARD = (
    baseline_of_processes(
        {row: [100 * day for day in DAYS], quantized: [200 * day for day in INT8_DAYS]},
        environment=environment,
        bandwidths=[20 * day for day in DAYS],
    )
    for row, quantized, environment in (
        (CPU_ROW, INT8_CPU, ENVIRONMENT),
        (CUDA_ROW, INT8_CUDA, CARD),
    )
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
    # A GPU without a UUID counts as another one.
    unknown = SpeedBaseline(baseline_of(device_uuid=None, driver="580.1"))
    assert Basis.TOK_S not in unknown.bases(row)


def test_the_unquantized_row_is_the_one_most_like_it() -> None:
    long = replace(OTHER, cache_size=4096)
    other_model, batch = replace(OTHER, model="other"), replace(OTHER, batch_size=8)
    wanted = replace(long, quantization="fp6")

    def most_like(*rows: RowSpec) -> RowSpec | None:
        stored = SpeedBaseline(baseline_of(*map(measured, rows)))
        similar = stored.unquantized[wanted.id]
        return None if similar is None else similar.row

    others = (CPU_ROW, other_model, batch, OTHER, wanted)
    assert most_like(*others, long) == long
    assert most_like(*others) == OTHER
    assert most_like(wanted, batch, other_model) is None


def test_rows_that_were_recorded_apart_do_not_make_a_ratio() -> None:
    older = replace(STORED.rows[0], recorded="earlier")
    apart = replace(STORED, rows=(older, STORED.rows[1]))
    assert SpeedBaseline(apart).unquantized[INT8_CPU.id] is None
    comparison = compare(measured(INT8_CPU, tok_s=200.0), apart, unquantized=measured())
    assert "no unquantized row was recorded with it" in comparison.reason


def test_values_are_taken_process_by_process() -> None:
    unquantized, int8 = STORED.rows
    one = replace(baseline_row(INT8_CPU, MEASUREMENT), recorded=unquantized.recorded)
    unknown = replace(MEASUREMENT, device_bandwidth_gb_s=None)
    for basis, rows, values in (
        (Basis.TOK_S, STORED.rows, [process.tok_s for process in int8.samples]),
        (Basis.RATIO, STORED.rows, [2.0, 2.02, 1.98, 2.0, 2.0]),
        (Basis.RATIO, (int8,), None),
        # Only the processes that both rows have.
        (Basis.RATIO, (unquantized, one), [1.0]),
        (Basis.BANDWIDTH, (unquantized,), [5.0] * 5),
        (Basis.BANDWIDTH, (baseline_row(CPU_ROW, *[unknown] * 3),), None),
    ):
        speeds = SpeedBaseline(replace(STORED, rows=rows)).speeds[basis]
        assert speeds.get(rows[-1].id) == (values and pytest.approx(values))


def test_a_ratio_does_not_move_with_the_machine() -> None:
    spreads = SpeedBaseline(STORED).spreads
    assert CPU_ROW.id not in spreads[Basis.RATIO]
    assert spreads[Basis.RATIO][INT8_CPU.id].deviation < 0.02
    assert spreads[Basis.TOK_S][INT8_CPU.id].deviation > 0.2
    slow_day = measured(tok_s=50.0, device_bandwidth_gb_s=10.0)
    for tok_s, verdict in ((100.0, Verdict.SAME), (80.0, Verdict.UNDECIDED)):
        now = measured(INT8_CPU, tok_s=tok_s)
        assert compare(now, STORED, unquantized=slow_day).verdict is verdict
    # A row is no unquantized row of itself.
    unquantized = compare(slow_day, STORED, unquantized=slow_day)
    assert unquantized.verdict is Verdict.SAME
    rate_change, by_bandwidth, *_ = unquantized.changes
    assert by_bandwidth.metric == Basis.BANDWIDTH.value
    assert rate_change.change == pytest.approx(-0.5, abs=0.05)
    assert rate_change.limit is None


def test_a_quantized_row_without_the_unquantized_is_compared_by_bandwidth() -> None:
    comparison = compare(measured(INT8_CPU, tok_s=200.0), STORED)
    assert comparison.verdict is Verdict.SAME
    assert "tok/s per GB/s of the device" in comparison.reason
    assert comparison.reason.endswith("; its unquantized row was not measured with it")
    now = measured(INT8_CUDA, tok_s=200.0)
    twice = compare(now, ON_CARD, environment=OTHER_CARD)
    assert [change.metric for change in twice.changes].count(Basis.BANDWIDTH.value) == 1
    unknown = compare(measured(INT8_CPU, device_bandwidth_gb_s=None), STORED)
    assert "; the device's bandwidth is not known" in unknown.reason


@pytest.mark.parametrize(
    ("tok_s", "bandwidth", "verdict"),
    [
        (180.0, 18.0, Verdict.SAME),
        (150.0, 18.0, Verdict.SLOWER),
        # The unquantized row lost as much, so only the bandwidth shows the loss.
        (180.0, 25.0, Verdict.SLOWER),
    ],
)
def test_on_another_card_of_the_model_either_ratio_fails_the_row(
    tok_s: float, bandwidth: float, verdict: Verdict
) -> None:
    unquantized = measured(CUDA_ROW, tok_s=90.0, device_bandwidth_gb_s=18.0)
    now = measured(INT8_CUDA, tok_s=tok_s, device_bandwidth_gb_s=bandwidth)
    trials = [Trial(row=now, unquantized=unquantized)] * 5
    comparison = compare(
        now, ON_CARD, environment=OTHER_CARD, unquantized=unquantized, fresh=trials
    )
    assert comparison.verdict is verdict


def test_the_same_gpu_is_judged_by_tok_s_whatever_its_bandwidth() -> None:
    stored = baseline_of_processes({CUDA_ROW: ALIKE}, environment=CARD)
    comparison = compare(measured(CUDA_ROW, device_bandwidth_gb_s=99.0), stored)
    assert comparison.verdict is Verdict.SAME
    first, second, *_ = comparison.changes
    assert (first.metric, second.metric) == ("tok/s", "peak memory")


def test_the_description_of_a_baseline_names_the_judged_quantity() -> None:
    def lines_of(stored: Baseline) -> list[str]:
        return list(describe_speeds(stored, {}, ids={row.id for row in stored.rows}))

    first, second = lines_of(STORED)
    assert "in tok/s per GB/s of the device" in first
    assert "in tok/s over the unquantized row's" in second
    assert all("% in tok/s, " in line for line in lines_of(ON_CARD))


REVIEWED = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE})
FIRST, SECOND = REVIEWED.rows


def with_first(**changes: Any) -> Baseline:
    return replace(REVIEWED, rows=(replace(FIRST, **changes), SECOND))


UNEVEN = baseline_of_processes({CPU_ROW: (50, 100, 200), OTHER: (40, 90, 200)})
SLOWED = baseline_of_processes({CPU_ROW: (0.5,) * 3}, "injected_slowdown")
ELSEWHERE = with_first(environment=replace(ENVIRONMENT, torch="1.0", commit="other"))
BOTH = (CPU_ROW, OTHER)


@pytest.mark.parametrize(
    ("changed", "known", "message"),
    [
        (REVIEWED, BOTH, None),
        (
            REVIEWED,
            (OTHER,),
            "if a file of your own has it, name that file: --rows FILE",
        ),
        (with_first(fingerprint="old"), BOTH, "the row changed since: record it again"),
        (
            baseline_of(measured()),
            BOTH,
            "1 of the 3 processes from which noise is estimated, so the limit is fixed:"
            " 25.0%",
        ),
        (UNEVEN, BOTH, "record it on a quieter machine"),
        (SLOWED, BOTH, "measured with an injected slowdown"),
        (ELSEWHERE, BOTH, "of another environment: torch: 1.0 -> 2.13.0"),
    ],
)
def test_each_problem_is_listed(
    changed: Baseline, known: tuple[RowSpec, ...], message: str | None
) -> None:
    lines = list(problems(changed, {row.id: row for row in known}))
    if message is None:
        assert lines == []
    else:
        assert lines[0].startswith(f"{CPU_ROW.id}: ")
        assert lines[0].endswith(message)


def test_check_fails_for_what_is_damaged_and_what_is_stale(
    tmp_path: Path, cli: CommandLine
) -> None:
    check = ["baseline", "check", "--baselines", str(tmp_path)]
    stored_in(tmp_path, REVIEWED)
    damaged = baselines.path_of(tmp_path, "damaged")
    damaged.parent.mkdir()
    damaged.write_text("{", encoding="utf-8")
    out, _ = cli(*check, code=1)
    assert f"cpu-some-2c: 2 problems\n  {CPU_ROW.id}: in no set" in out
    assert f"damaged: 1 problem\n  {damaged}: Invalid JSON" in out
    # Rows of one's own files are known too.
    damaged.unlink()
    files = []
    for number, row in enumerate(BOTH):
        file = tmp_path / f"{number}.toml"
        fields = f'model = "{row.model}"\ndtype = "float32"\ndevice = "cpu"\n'
        compiled = str(row.compile).lower()
        file.write_text(f"[[row]]\n{fields}compile = {compiled}\n", encoding="utf-8")
        files += ["--rows", str(file)]
    assert cli(*check, *files)[0] == "cpu-some-2c: sound\n"
    out, _ = cli(*check, *files[:2], code=1)
    assert out.startswith(f"cpu-some-2c: 1 problem\n  {OTHER.id}: in no set")
    # A sound one, and the one that comes along.
    stored_in(tmp_path, baseline_of_processes({selection.load_set("cpu")[0]: ALIKE}))
    assert cli(*check)[0] == "cpu-some-2c: sound\n"
    cli("baseline", "check", "--device", baselines.REFERENCE_KEY)
