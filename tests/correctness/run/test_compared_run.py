"""A whole run under both command lines: result, verdict, confirmation, saved file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from llama_perf.cli.main import main
from llama_perf.gate import baselines
from llama_perf.report.text import as_text
from llama_perf.results.run import Status
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import measured, unmeasured

pytest_plugins = ["pytester"]


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


def record_three_processes(project: Project, slow: str) -> None:
    """A baseline in which row `slow` was far faster and the others far slower."""
    project.run()
    path = project.record()
    baseline = baselines.read(path)
    rows = []
    for row in baseline.rows:
        tok_s = 1e12 if row.id == slow else 1e-6
        measurements = [
            replace(row.measurement, tok_s=tok_s * factor)
            for factor in (0.999, 1.0, 1.001)
        ]
        rows.append(baselines.baseline_row(row.row, *measurements))
    project.write(path, replace(baseline, rows=tuple(rows)))


def test_pytest_confirms_a_suspicious_row_before_it_fails_it(
    project: Project, processes: Callable[..., list[str]]
) -> None:
    record_three_processes(project, INT8)
    ids = processes(100.0)
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    # Together with the unquantized row, which goes first every other time.
    assert ids == [INT8, PLAIN, PLAIN, INT8] * 2 + [INT8, PLAIN]
    assert project.verdicts()[INT8] is Verdict.SLOWER
    result.stdout.fnmatch_lines(
        [
            "*fresh process 1 of 5, *fresh process 5 of 5, *",
            f"SLOWER {INT8}: tok/s *; confirmed by 5 fresh processes: 1.000 *",
        ]
    )
    header = next(line for line in result.outlines if line.startswith("row "))
    assert "min. detectable" in header


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row that looks slower: what its fresh processes show, and what comes of it."""

    options: tuple[str, ...] = ()
    tok_s: float = 1e12
    breaks_at: int | None = None
    started: int = 5
    verdict: Verdict
    fails: bool
    reason: str


CASES = {
    "slower": Case(
        tok_s=100.0, verdict=Verdict.SLOWER, fails=True, reason="; confirmed by 5 fresh"
    ),
    "refuted": Case(verdict=Verdict.SAME, fails=False, reason="; not confirmed by 5"),
    "broken": Case(
        tok_s=100.0,
        breaks_at=3,
        started=3,
        verdict=Verdict.UNDECIDED,
        fails=True,
        reason="signal 9",
    ),
    "not confirmed": Case(
        options=("--no-confirm",),
        started=0,
        verdict=Verdict.UNDECIDED,
        fails=True,
        reason="confirmation was off",
    ),
    "only reported": Case(
        options=("--no-confirm", "--on-undecided=report"),
        started=0,
        verdict=Verdict.UNDECIDED,
        fails=False,
        reason="confirmation was off",
    ),
}


@pytest.mark.parametrize("front", ["pytest", "command"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_fresh_processes_decide(
    project: Project,
    processes: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    case: Case,
    front: str,
) -> None:
    record_three_processes(project, PLAIN)
    ids = processes(case.tok_s, breaks_at=case.breaks_at)
    if front == "pytest":
        code = int(project.run("--benchmark-compare", *case.options).ret)
    else:
        code = main(project.run_words("--compare", *case.options))
    assert code == case.fails
    assert ids == [PLAIN] * case.started
    assert project.verdicts()[PLAIN] is case.verdict
    assert project.verdicts()[FP6] is Verdict.NOT_RUN
    output = capsys.readouterr().out
    assert as_text(project.report()) in output
    assert case.reason in output
    assert "record one with" not in output


def test_a_row_is_saved_before_it_is_confirmed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_three_processes(project, PLAIN)

    def interrupted(_row: RowSpec, **_arguments: object) -> worker.WorkerResult:
        assert project.verdicts() == {PLAIN: Verdict.UNDECIDED}
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "run_in_process", interrupted)
    assert main(project.run_words("--compare")) == 130
    assert project.verdicts() == {PLAIN: Verdict.UNDECIDED}
