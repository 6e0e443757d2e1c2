"""Nothing measured is lost: crashes, kills, interrupts, hangs, two runs at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_perf.errors import BusyError, RecordError
from llama_perf.results.run import Status, read_report
from llama_perf.results.verdict import Verdict
from llama_perf.run import worker
from llama_perf.run.lock import DeviceLock
from tests.correctness.support.command_line import refusal
from tests.correctness.support.plugin_project import INT8, PLAIN, Project
from tests.correctness.support.processes import HANG_S, clock_that_waits_for, wait_until

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have every worker run `code` before a row; it has the row's `id` there."""
    original = worker.worker_command

    def sabotage(code: str) -> None:
        body = "".join(f"    {line}\n" for line in code.splitlines())
        patch = (
            "import os, time\n"
            "from llama_perf.results.measurement import Ceiling\n"
            "from llama_perf.run import session\n"
            "session.measure_ceiling = lambda _: Ceiling(read_gb_s=20.0)\n"
            "measured = session.Session.run_row\n"
            "def sabotaged(self, row, **rest):\n"
            "    id = row.id\n"
            f"{body}"
            "    return measured(self, row, **rest)\n"
            "session.Session.run_row = sabotaged\n"
            "main(sys.argv[1:])"
        )

        def command(python: Path, package: Path, replies: int) -> list[str]:
            *head, start, number = original(python, package, replies)
            return [*head, start.replace("main(sys.argv[1:])", patch), number]

        monkeypatch.setattr(worker, "worker_command", command)

    return sabotage


def test_a_row_whose_process_is_killed_costs_only_that_row(
    project: Project, sabotaged: Callable[[str], None]
) -> None:
    sabotaged(f"if id == {PLAIN!r}: os.kill(os.getpid(), 9)")
    result = project.run_isolated()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    killed, next_row, _ = project.report().results
    assert (killed.id, killed.status) == (PLAIN, Status.INVALID)
    assert str(killed.reason).startswith("its process was ended by signal 9")
    assert next_row.status is Status.MEASURED
    result.stdout.fnmatch_lines([f"*INVALID {PLAIN}: its process was ended by*"])


def test_rows_of_a_session_share_a_process_and_those_of_row_do_not(
    project: Project, sabotaged: Callable[[str], None], tmp_path: Path
) -> None:
    log = tmp_path / "pids"
    sabotaged(f"print(os.getpid(), file=open({str(log)!r}, 'a'), flush=True)")
    for isolate, processes in (("session", 1), ("row", 3)):
        log.unlink(missing_ok=True)
        project.run_isolated(f"--isolate={isolate}").assert_outcomes(
            passed=2, skipped=1
        )
        pids = log.read_text(encoding="utf-8").split()
        assert (len(pids), len(set(pids))) == (3, processes)
        assert str(os.getpid()) not in pids


def test_a_row_that_breaks_by_an_upstream_issue_leaves_no_process_to_the_next(
    project: Project, sabotaged: Callable[[str], None], tmp_path: Path
) -> None:
    """It is NOT_RUN, and its card's context may be gone all the same."""
    log = tmp_path / "pids"
    sabotaged(
        f"print(os.getpid(), file=open({str(log)!r}, 'a'), flush=True)\n"
        "if row.upstream_issue: session.prepare = None"
    )
    project.edit_rows("[[row]]\n", '[[row]]\nupstream_issue = "pytorch/ao#1"\n')
    project.run_isolated()
    broken, next_one, _ = project.report().results
    assert broken.status is Status.NOT_RUN
    assert str(broken.reason).startswith("broken upstream, pytorch/ao#1: TypeError")
    assert next_one.status is Status.MEASURED, next_one.reason
    first, *others = log.read_text(encoding="utf-8").split()
    assert first not in others


def test_a_row_that_hangs_ends_as_invalid(
    project: Project,
    sabotaged: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    lost = tmp_path / "lost"
    monkeypatch.setattr(worker, "time", clock_that_waits_for(lost.exists))
    hang = f"print('lost', flush=True); open({str(lost)!r}, 'w'); time.sleep(3600)"
    sabotaged(f"if id == {PLAIN!r}: {hang}")
    result = project.run_isolated("--row-timeout=20", "--row=*none*")
    result.assert_outcomes(failed=1)
    reason = "its process was ended after 20 s (row-timeout): * | lost"
    result.stdout.fnmatch_lines([f"*INVALID {PLAIN}: {reason.replace('* | ', '*')}"])


def start(project: Project, *options: str) -> subprocess.Popen[str]:
    """`llama-perf run` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "llama_perf", *project.run_words(*options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_is_resumed_with_every_finished_row_intact(
    project: Project,
) -> None:
    kernels = 'kernels = "torchao"'
    # The second row takes until the signal comes.
    endless = f"{kernels}\nnum_samples = 200000"
    project.edit_rows(kernels, endless)
    path = project.path / ".llama-perf" / "last.json"
    with start(project) as process:
        try:
            wait_until(path.exists)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    project.edit_rows(endless, kernels)
    (before,) = project.report().results
    assert (before.id, before.status) == (PLAIN, Status.MEASURED)
    with start(project, "--resume") as process:
        _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err
    assert f"{PLAIN}: taken over, " in err
    first, second, _ = project.report().results
    assert first == before
    assert (second.id, second.status) == (INT8, Status.MEASURED)


def test_pytest_resumes_and_measures_what_was_not(project: Project) -> None:
    project.run("--row=*none*").assert_outcomes(passed=1)
    before = project.report().results[0]
    result = project.run("--resume")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines([f"*{PLAIN}: taken over, *"])
    after = project.report()
    assert after.results[0] == before
    assert len(after.results) == 3


def test_rows_not_yet_taken_over_stay_in_the_file(project: Project) -> None:
    project.run().assert_outcomes(passed=2, skipped=1)
    _, second, _ = project.report().results
    assert second.id == INT8
    # The first row runs again and ends the run before the second is taken over.
    project.edit_rows("[[row]]\n", "[[row]]\ntop_k = 3\n")
    project.run("--resume", "--maxfail=1", "--row=*top*", "--row=*int8*")
    assert second in project.report().results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "*last.json: cannot be read: No such file*"),
        (["--row-timeout=0"], "*row-timeout: 0.0 is not allowed; allowed: a number*"),
        (["--time-budget=-1"], "*time-budget: -1.0 is not allowed; allowed: a*"),
        (["--time-budget=nan"], "*time-budget: nan is not allowed; allowed: a*"),
        (["--isolate=none"], "*--isolate: invalid choice: 'none' (choose from *"),
        (["--results=-"], "*results: '-' is not allowed; under pytest, give a file*"),
    ],
)
def test_what_is_not_allowed_is_one_line(
    project: Project, options: list[str], message: str
) -> None:
    result = project.run(*options)
    assert result.ret != 0
    result.stderr.fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_run_of_other_code_or_another_machine_is_not_resumed(
    project: Project,
) -> None:
    project.run("--row=*none*")
    path = project.path / ".llama-perf" / "last.json"
    text = path.read_text(encoding="utf-8")
    threads = project.report().environment.threads
    path.write_text(
        text.replace(f'"threads": {threads}', '"threads": 77'), encoding="utf-8"
    )
    result = project.run("--resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    message = f"*resume: *last.json is of another run: threads: 77 -> {threads}*"
    result.stderr.fnmatch_lines([message])
    assert path.read_text(encoding="utf-8") != text, "the file stays as it was"


def test_a_row_measured_with_a_slowdown_is_not_taken_over(project: Project) -> None:
    project.run("--row=*none*", "--inject-slowdown=*=50")
    result = project.run("--resume", "--row=*none*")
    result.stderr.fnmatch_lines([f"*measured {PLAIN} with an inject-slowdown of 50%*"])


def test_two_runs_on_a_device_are_refused_by_name(project: Project) -> None:
    lock = DeviceLock(CPU, wait=False)
    lock.acquire()
    try:
        result = project.run()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        message = f"*cpu: in use by another run, process {os.getpid()}: *(--wait)*"
        result.stderr.fnmatch_lines([message])
        with pytest.raises(BusyError, match="two at once would slow each other down"):
            DeviceLock(CPU, wait=False).acquire()
    finally:
        lock.release()
    project.run().assert_outcomes(passed=2, skipped=1)


def test_a_run_that_waits_starts_when_the_device_is_free(project: Project) -> None:
    lock = DeviceLock(CPU, wait=False)
    lock.acquire()
    process = start(project, "--wait")
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "in use by another run" in line
    assert line.endswith("; waiting\n")
    lock.release()
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err


def test_a_time_budget_starts_no_row_it_cannot_finish(project: Project) -> None:
    project.run("--time-budget=0.000001").assert_outcomes(skipped=3)
    (first, *_) = project.report().results
    assert first.status is Status.NOT_RUN
    assert str(first.reason) == (
        "time-budget: 0 of 1e-06 s are left, and it needs about 0 s by the longest row"
        " so far"
    )


def test_what_the_budget_leaves_out_fails_where_the_baseline_has_it(
    project: Project,
) -> None:
    project.run().assert_outcomes(passed=2, skipped=1)
    project.record(warm_up_s=1e6)
    result = project.run("--benchmark-compare", "--time-budget=600", "--row=*none*")
    result.assert_outcomes(failed=1)
    comparison = project.report().comparisons[0]
    assert comparison.verdict is Verdict.NOT_RUN
    assert "by the baseline; the baseline has this row" in comparison.reason


def test_resuming_without_a_file_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_report(project.path / "none.json")
    assert refusal(capsys, *project.words("run"), "--resume") == (
        "resume: None is not allowed; name the results of that run: --results FILE"
    )
