"""Rows in fresh processes: what a confirmation decides, and what ends a recording."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from llama_perf.errors import RecordError
from llama_perf.report.text import as_text
from llama_perf.results import baselines
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.fresh_processes import (
    confirmation,
    default_processes,
    in_fresh_processes,
)
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import to_json
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]
OTHER = replace(CPU_ROW, compile=True)
Process = Callable[[int, RowSpec], tuple[RowResult, Environment | None]]
Started = Callable[[Process], list[str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Have `process(number, row)` stand for every process; returns those started."""

    def stand_in(process: Process) -> list[str]:
        ids: list[str] = []

        def run(
            row: RowSpec, *, options: RunRequest, devices: Iterable[str]
        ) -> worker.WorkerResult:
            assert set(devices) <= {"cpu", "cuda"}
            assert not options.inject_slowdown
            ids.append(row.id)
            result, environment = process(ids.count(row.id), row)
            return worker.WorkerResult(result=result, environment=environment)

        monkeypatch.setattr(worker, "run_in_process", run)
        return ids

    return stand_in


def broken(row: RowSpec) -> RowResult:
    return unmeasured(Status.INVALID, "its process was ended by signal 9: Oh", row)


def record_three_processes(project: Project, slow: str) -> None:
    """A baseline in which row `slow` was far faster and the others far slower."""
    project.run()
    path = project.record()
    baseline = baselines.read(path)
    rows = []
    for row in baseline.rows:
        tok_s = 1e12 if row.id == slow else 1e-6
        processes = [
            replace(row.measurement, tok_s=tok_s * by) for by in (0.999, 1.0, 1.001)
        ]
        rows.append(baselines.baseline_row(row.row, *processes))
    path.write_text(to_json(replace(baseline, rows=tuple(rows))), encoding="utf-8")


def test_a_suspicious_row_is_confirmed(project: Project, started: Started) -> None:
    record_three_processes(project, INT8)
    ids = started(lambda _, row: (measured(row), None))
    result = project.run("--benchmark-compare", passed=1, failed=1, skipped=1)
    # Together with the unquantized row, which goes first every other time.
    assert ids == [INT8, PLAIN, PLAIN, INT8] * 2 + [INT8, PLAIN]
    assert project.verdicts()[INT8] is Verdict.SLOWER
    result.stdout.fnmatch_lines(
        [
            "*fresh process 1 of 5, *fresh process 5 of 5, *",
            "row * min. detectable *",
            f"SLOWER {INT8}: tok/s *; confirmed by 5 fresh processes: 1.000 *",
        ]
    )


CASES: dict[str, tuple[str, float, int, int, Verdict, str]] = {
    # Options, the processes' tok/s, which one breaks, how many start, what is decided.
    "slower": ("", 100.0, 0, 5, Verdict.SLOWER, "; confirmed by 5 fresh"),
    "refuted": ("", 1e12, 0, 5, Verdict.SAME, "; not confirmed by 5"),
    "broken": ("", 100.0, 3, 3, Verdict.UNDECIDED, "signal 9"),
    "off": ("--no-confirm", 1.0, 0, 0, Verdict.UNDECIDED, "confirmation was off"),
    "reported": (
        *("--no-confirm --on-undecided=report", 1.0, 0, 0, Verdict.UNDECIDED),
        "confirmation was off",
    ),
}


@pytest.mark.parametrize("front", ["pytest", "command"])
@pytest.mark.parametrize("case", CASES)
def test_what_fresh_processes_decide(
    project: Project, started: Started, case: str, front: str
) -> None:
    options, tok_s, breaks_at, count, verdict, reason = CASES[case]
    record_three_processes(project, PLAIN)

    def process(index: int, row: RowSpec) -> tuple[RowResult, None]:
        return (broken(row) if index == breaks_at else measured(row, tok_s=tok_s)), None

    ids, fails = started(process), case not in ("refuted", "reported")
    if front == "pytest":
        result = project.run("--benchmark-compare", *options.split())
        assert result.ret == fails
        output = result.stdout.str()
    else:
        words = project.run_words("--compare", *options.split())
        output, _ = project.cli(*words, code=fails)
    assert ids == [PLAIN] * count
    assert project.verdicts()[PLAIN] is verdict
    assert project.verdicts()[FP6] is Verdict.NOT_RUN
    assert as_text(project.report()) in output
    assert reason in output
    assert "record one with" not in output


def test_a_row_is_saved_before_confirmation(project: Project, started: Started) -> None:
    record_three_processes(project, PLAIN)

    def interrupted(_number: int, _row: RowSpec) -> tuple[RowResult, None]:
        assert project.verdicts() == {PLAIN: Verdict.UNDECIDED}
        raise KeyboardInterrupt

    started(interrupted)
    out, err = project.cli(*project.run_words("--compare"), code=130)
    assert project.verdicts() == {PLAIN: Verdict.UNDECIDED}
    assert project.report().selected == 3
    assert "1 row: 1 run, 0 NOT_RUN" in out
    assert err.endswith("\ninterrupted before 2 of 3 rows; --resume continues\n")


def record(*rows: RowSpec) -> list[RowResult]:
    options = RunRequest()
    _, results = in_fresh_processes(rows, processes=3, options=options, progress=print)
    return results


def test_rows_take_turns_and_one_that_cannot_run_does_not(started: Started) -> None:
    refused = unmeasured(Status.NOT_RUN, "no card", CUDA_ROW)
    ids = started(
        lambda number, row: (
            refused if row == CUDA_ROW else measured(row, tok_s=number),
            ENVIRONMENT,
        )
    )
    results = record(CUDA_ROW, CPU_ROW, OTHER)
    assert ids == [CUDA_ROW.id, *[CPU_ROW.id, OTHER.id] * 3]
    speeds = [result.measurement.tok_s for result in results if result.measurement]
    assert speeds == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("breaks", [CPU_ROW, OTHER])
def test_a_confirmation_ends_where_either_row_breaks(
    started: Started, breaks: RowSpec
) -> None:
    results = {row: measured(row) for row in (CPU_ROW, OTHER)}
    results[breaks] = broken(breaks)
    ids = started(lambda _, row: (results[row], None))
    (trial,) = confirmation(OTHER, CPU_ROW, options=RunRequest())
    assert ids == [OTHER.id, CPU_ROW.id]
    assert trial.missed == results[breaks]


def test_a_broken_process_or_another_machine_ends_it(started: Started) -> None:
    def breaks(number: int, row: RowSpec) -> tuple[RowResult, Environment | None]:
        if row == OTHER and number == 2:
            return broken(row), None
        return measured(row), ENVIRONMENT

    ids = started(breaks)
    with pytest.raises(RecordError) as caught:
        record(CPU_ROW, OTHER)
    assert str(caught.value) == (
        f"baseline: {OTHER.id} is INVALID in process 2 of 3: its process was ended by"
        " signal 9: Oh"
    )
    assert len(ids) == 4
    newer = replace(ENVIRONMENT, torch="2.14.0")
    started(lambda number, row: (measured(row), newer if number == 2 else ENVIRONMENT))
    with pytest.raises(RecordError, match=r"torch: 2\.13\.0 -> 2\.14\.0"):
        record(CPU_ROW)


def test_a_cuda_baseline_has_ten_processes_and_another_five() -> None:
    assert default_processes([CPU_ROW]) == 5
    assert default_processes([CPU_ROW, CUDA_ROW]) == 10


@pytest.mark.parametrize("interrupt", [False, True])
def test_an_early_ending(project: Project, started: Started, interrupt: bool) -> None:
    path = project.record()
    before = path.read_bytes()
    environment = baselines.read(path).environment

    def process(number: int, row: RowSpec) -> tuple[RowResult, Environment | None]:
        if (number, row.id) != (2, INT8):
            return measured(row), environment
        if interrupt:
            raise KeyboardInterrupt
        return broken(row), None

    ids = started(process)
    words = project.words("baseline", "record", "--processes", "3")
    words += ["--fresh"] * interrupt
    _, err = project.cli(*words, code=130 if interrupt else 2)
    assert interrupt or f"error: baseline: {INT8} is INVALID in process 2 of 3" in err
    assert ids == [PLAIN, INT8, FP6, PLAIN, INT8]
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_baseline_is_reported_before_anything_runs(project: Project) -> None:
    path = project.record()
    path.write_text("{", encoding="utf-8")
    _, err = project.cli(*project.words("baseline", "record"), code=2)
    assert f"llama-perf: error: {path}: Invalid JSON" in err
    assert "[process " not in err
