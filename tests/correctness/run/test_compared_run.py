"""Screen, confirm, decide: verdicts on speed beside a baseline of several processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.cli.main import main
from llama_perf.gate import baselines
from llama_perf.gate.confirmation import Trial
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline, StoredSpeed
from llama_perf.gate.thresholds import (
    as_share,
    confirm_limit,
    geometric_mean,
    log_loss,
    screen_limit,
)
from llama_perf.report.text import as_text
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    MEASUREMENT,
    baseline_of_processes,
    chosen,
    compare,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]
OTHER = replace(CPU_ROW, compile=True)
ALIKE = (99.0, 100.0, 101.0, 99.5, 100.5)
BASELINE = baseline_of_processes({CPU_ROW: ALIKE, OTHER: ALIKE[::-1]})
# On a CPU an unquantized row is compared by the bandwidth of the run.
BASIS = Basis.BANDWIDTH
BANDWIDTH = MEASUREMENT.device_bandwidth_gb_s or 0.0


def stored_speed(baseline: Baseline) -> StoredSpeed:
    speed = SpeedBaseline(baseline).speed(BASIS, CPU_ROW.id)
    assert speed is not None
    return speed


SPEED = stored_speed(BASELINE)
TOK_S = SPEED.mean * BANDWIDTH
SCREEN = as_share(screen_limit(SPEED.spread, SPEED.processes))
CONFIRM = as_share(confirm_limit(SPEED.spread, SPEED.processes))
# tok/s that only just are, and only just are not, what their names say.
SUSPICIOUS, UNSUSPICIOUS = (TOK_S * (1 - SCREEN * by) for by in (1.01, 0.99))
CONFIRMED, REFUTED = (TOK_S * (1 - CONFIRM * by) for by in (1.01, 0.99))


def fresh(tok_s: float, count: int = 5) -> list[Trial]:
    return [Trial(row=measured(tok_s=tok_s))] * count


def judged(tok_s: float, again: list[Trial] | None = None) -> Comparison:
    return compare(measured(tok_s=tok_s), BASELINE, fresh=again)


def test_a_row_within_the_screen_is_the_same_and_tells_what_it_would_find() -> None:
    found = judged(UNSUSPICIOUS)
    assert found.verdict is Verdict.SAME
    assert not found.suspicious
    assert found.reason.startswith("within its limits: tok/s 100.00 -> ")
    assert found.reason.endswith(f"limit {SCREEN:.1%})")
    assert found.minimum_detectable == SPEED.minimum_detectable > SCREEN


def test_a_suspicious_row_without_fresh_processes_is_undecided_and_fails() -> None:
    found = judged(SUSPICIOUS)
    assert found.verdict is Verdict.UNDECIDED
    assert found.failed
    assert found.reason.endswith("; looks slower; confirmation was off")
    allowed = compare(measured(tok_s=SUSPICIOUS), BASELINE, undecided_fails=False)
    assert allowed.verdict is Verdict.UNDECIDED
    assert not allowed.failed


def test_fresh_processes_decide() -> None:
    slower = judged(SUSPICIOUS, fresh(CONFIRMED))
    assert slower.verdict is Verdict.SLOWER
    assert slower.failed
    assert [each.worse for each in slower.changes[:2]] == [False, True]
    told = f"; confirmed by 5 fresh processes: {CONFIRMED / BANDWIDTH:.3f} ("
    assert told in slower.reason
    assert slower.reason.endswith(f"limit {CONFIRM:.1%})")
    same = judged(SUSPICIOUS, fresh(REFUTED))
    assert same.verdict is Verdict.SAME
    assert same.suspicious
    assert not same.failed
    assert "; not confirmed by 5 fresh processes: " in same.reason


def test_however_slow_one_process_was_it_fails_no_row_alone() -> None:
    assert judged(1e-3, fresh(100.0)).verdict is Verdict.SAME


@pytest.mark.parametrize("status", [Status.INVALID, Status.NOT_RUN])
def test_fresh_processes_that_break_decide_nothing(status: Status) -> None:
    broken = unmeasured(status, "its process ended with code 1")
    again = [*fresh(100.0, 2), Trial(row=broken)]
    found = judged(SUSPICIOUS, again)
    assert found.verdict is Verdict.UNDECIDED
    assert found.failed
    assert found.reason.endswith(
        "; looks slower; 2 of 5 fresh processes finished:"
        f" {status.value}: its process ended with code 1"
    )
    assert judged(SUSPICIOUS, []).reason.endswith("0 of 5 fresh processes finished")


def test_larger_is_certain_while_speed_is_not() -> None:
    grown = measured(tok_s=SUSPICIOUS, model_size_bytes=600_000_000)
    for again, verdict in (
        (None, Verdict.LARGER),
        (fresh(REFUTED), Verdict.LARGER),
        (fresh(CONFIRMED), Verdict.SLOWER),
    ):
        found = compare(grown, BASELINE, undecided_fails=False, fresh=again)
        assert found.verdict is verdict
        assert found.failed
        assert "model size 0.500 GB -> 0.600 GB" in found.reason
        assert ("looks slower" in found.reason) == (again is None)


def test_faster_takes_more_than_a_screen_since_nothing_confirms_it() -> None:
    assert judged(TOK_S * (1 + SCREEN)).verdict is Verdict.SAME
    faster = judged(TOK_S * 1.5)
    assert faster.verdict is Verdict.FASTER
    assert not faster.failed


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_processes_have_a_plain_limit(count: int) -> None:
    few = baseline_of_processes({CPU_ROW: (100.0, 100.1)[:count], OTHER: ALIKE})
    for tok_s, verdict in ((80.0, Verdict.SAME), (70.0, Verdict.SLOWER)):
        found = compare(measured(tok_s=tok_s), few)
        assert found.verdict is verdict
        assert f"; fixed limit: the baseline has {count} of the 3 " in found.reason
        assert found.minimum_detectable is None


def test_a_slower_row_tells_where_autoquant_chose_otherwise() -> None:
    before = replace(
        BASELINE.rows[0],
        measurement=replace(
            BASELINE.rows[0].measurement, autoquant=(chosen("int8wo"),)
        ),
    )
    baseline = replace(BASELINE, rows=(before, *BASELINE.rows[1:]))
    now = measured(tok_s=SUSPICIOUS, autoquant=(chosen("none"),))
    found = compare(now, baseline, fresh=fresh(CONFIRMED))
    assert found.reason.endswith(
        "; autoquant chose none instead of int8wo for 128 x 64"
    )


@given(
    st.lists(st.floats(90, 110), min_size=3, max_size=12),
    st.lists(st.floats(90, 110), min_size=3, max_size=12),
    st.floats(50, 150),
    st.one_of(st.none(), st.lists(st.floats(50, 150), max_size=5)),
)
def test_a_verdict_on_speed_is_never_a_silent_pass(
    ours: list[float], theirs: list[float], now: float, again: list[float] | None
) -> None:
    baseline = baseline_of_processes({CPU_ROW: ours, OTHER: theirs})
    speed = stored_speed(baseline)
    results = None
    if again is not None:
        results = [Trial(row=measured(tok_s=each)) for each in again]
    found = compare(measured(tok_s=now), baseline, fresh=results)
    loss = log_loss(now / BANDWIDTH, speed.mean)
    assert found.suspicious == (loss > screen_limit(speed.spread, speed.processes))
    assert loss > -math.log1p(-0.01) or not found.suspicious
    if not found.suspicious:
        assert found.verdict in {Verdict.SAME, Verdict.FASTER}
    elif again is None or len(again) < 5:
        assert found.verdict is Verdict.UNDECIDED
    else:
        mean = geometric_mean([each / BANDWIDTH for each in again])
        limit = confirm_limit(speed.spread, speed.processes)
        slower = log_loss(mean, speed.mean) > limit
        assert found.verdict is (Verdict.SLOWER if slower else Verdict.SAME)
    assert found.failed == (found.verdict in {Verdict.SLOWER, Verdict.UNDECIDED})


# -- a whole run ---------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Have fresh processes show made-up tok/s; returns the ids they ran."""

    def made_up(tok_s: float, *, breaks_at: int | None = None) -> list[str]:
        ids: list[str] = []

        def run(row: RowSpec, **_arguments: object) -> worker.WorkerResult:
            ids.append(row.id)
            if len(ids) == breaks_at:
                result = unmeasured(Status.INVALID, "it was ended by signal 9", row)
            else:
                result = measured(row, tok_s=tok_s)
            return worker.WorkerResult(result=result, environment=None)

        monkeypatch.setattr(worker, "run_in_process", run)
        return ids

    return made_up


def with_processes(project: Project, slow: str, *, tok_s: float) -> None:
    """A baseline of three processes: that row at `tok_s`, the others far slower."""
    project.run()
    path = project.record()
    baseline = baselines.read(path)
    rows = []
    for row in baseline.rows:
        center = tok_s if row.id == slow else 1e-6
        speeds = [center * by for by in (0.999, 1.0, 1.001)]
        several = [replace(row.measurement, tok_s=each) for each in speeds]
        rows.append(baselines.baseline_row(row.row, *several))
    project.write(path, replace(baseline, rows=tuple(rows)))


def verdicts(project: Project) -> dict[str, Verdict]:
    return {each.id: each.verdict for each in project.report().comparisons}


def test_pytest_confirms_a_suspicious_row_alone_before_it_fails_it(
    project: Project, processes: Callable[..., list[str]]
) -> None:
    with_processes(project, INT8, tok_s=1e12)
    ids = processes(100.0)
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    # Each beside the unquantized row, in turn.
    assert ids == [INT8, PLAIN, PLAIN, INT8] * 2 + [INT8, PLAIN]
    assert verdicts(project)[INT8] is Verdict.SLOWER
    result.stdout.fnmatch_lines(
        [
            "*fresh process 1 of 5, *fresh process 5 of 5, *",
            f"SLOWER {INT8}: tok/s *; confirmed by 5 fresh processes: 1.000 *",
        ]
    )
    header = next(line for line in result.outlines if line.startswith("row "))
    assert "min. detectable" in header


def test_pytest_passes_a_row_that_its_fresh_processes_refute(
    project: Project, processes: Callable[..., list[str]]
) -> None:
    with_processes(project, PLAIN, tok_s=1e12)
    ids = processes(1e12)
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.OK
    assert ids == [PLAIN] * 5
    assert verdicts(project)[PLAIN] is Verdict.SAME
    result.stdout.fnmatch_lines([f"SAME {PLAIN}: *; not confirmed by 5 fresh *"])


@pytest.mark.parametrize("allowed", [False, True])
def test_pytest_without_confirmation_leaves_it_undecided(
    project: Project, processes: Callable[..., list[str]], allowed: bool
) -> None:
    with_processes(project, PLAIN, tok_s=1e12)
    ids = processes(1e12)
    options = ["--on-undecided=report"] if allowed else []
    result = project.run("--benchmark-compare", "--no-confirm", *options)
    assert result.ret == (0 if allowed else pytest.ExitCode.TESTS_FAILED)
    assert ids == []
    assert verdicts(project)[PLAIN] is Verdict.UNDECIDED
    result.stdout.fnmatch_lines([f"UNDECIDED {PLAIN}: *confirmation was off"])


def command(project: Project, *options: str) -> list[str]:
    words = [
        "run",
        "--compare",
        "--rows",
        str(project.path / "rows.toml"),
    ]
    words += ["--checkpoints", str(project.path / "checkpoints")]
    words += ["--baselines", str(project.path / "baselines")]
    kept = str(project.path / ".llama-perf" / "last.json")
    return [*words, "--json", kept, *options]


@pytest.mark.parametrize(
    ("options", "tok_s", "breaks_at", "started", "verdict", "code"),
    [
        ([], 100.0, None, 5, Verdict.SLOWER, 1),
        ([], 1e12, None, 5, Verdict.SAME, 0),
        ([], 100.0, 3, 3, Verdict.UNDECIDED, 1),
        (["--no-confirm"], 100.0, None, 0, Verdict.UNDECIDED, 1),
        (["--no-confirm", "--on-undecided", "report"], 1.0, None, 0, "UNDECIDED", 0),
    ],
)
def test_the_command_does_the_same(
    project: Project,
    processes: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    tok_s: float,
    breaks_at: int | None,
    started: int,
    verdict: Verdict | str,
    code: int,
) -> None:
    with_processes(project, PLAIN, tok_s=1e12)
    ids = processes(tok_s, breaks_at=breaks_at)
    assert main(command(project, *options)) == code
    assert ids == [PLAIN] * started
    assert verdicts(project)[PLAIN] is Verdict(verdict)
    assert verdicts(project)[FP6] is Verdict.NOT_RUN
    told = capsys.readouterr().out
    assert as_text(project.report()) in told
    assert ("signal 9" in told) == (breaks_at is not None)


def test_a_row_is_kept_before_it_is_confirmed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_processes(project, PLAIN, tok_s=1e12)

    def interrupted(_row: RowSpec, **_arguments: object) -> worker.WorkerResult:
        assert verdicts(project) == {PLAIN: Verdict.UNDECIDED}
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "run_in_process", interrupted)
    assert main(command(project)) == 130
    assert verdicts(project) == {PLAIN: Verdict.UNDECIDED}
