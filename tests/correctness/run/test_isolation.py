"""Nothing measured is lost: crashes, kills, interrupts, hangs, two runs at once."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_perf.results.run import Status
from llama_perf.results.verdict import Verdict
from llama_perf.run import compared_run, worker
from llama_perf.run.lock import locked
from tests.correctness.support import processes
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project

pytest_plugins = ["pytester"]


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have rows run in worker processes, as users have it, and `code` before each.

    It has the row's `id`.
    """
    monkeypatch.setattr(compared_run, "Worker", worker.Worker)
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


def test_broken_processes(project: Project, sabotaged: Callable[[str], None]) -> None:
    log, lost = project.path / "pids", project.path / "lost"
    project.patch.setattr(worker, "time", processes.clock_that_waits_for(lost.exists))
    sabotaged(
        f"print(os.getpid(), file=open({str(log)!r}, 'a'), flush=True)\n"
        f"if id == {PLAIN!r}: os.kill(os.getpid(), 9)\n"
        f"if id == {FP6!r}:\n"
        f"    print('lost', flush=True); open({str(lost)!r}, 'w'); time.sleep(3600)"
    )
    result = project.run("--row-timeout=20", passed=1, failed=2)
    ended = {result.id: result.status for result in project.report().results}
    invalid, measured = Status.INVALID, Status.MEASURED
    assert ended == {PLAIN: invalid, INT8: measured, FP6: invalid}
    result.stdout.fnmatch_lines(
        [
            f"*INVALID {PLAIN}: its process was ended by signal 9*",
            f"*INVALID {FP6}: its process was ended after 20 s (row-timeout): *lost",
        ]
    )
    # A row shares the process of the one before it, unless that broke.
    killed, *shared = map(int, log.read_text(encoding="utf-8").split())
    assert len(shared) == 2
    assert killed not in shared
    assert len({*shared}) == 1
    assert not any(map(processes.alive, [killed, *shared]))


def test_isolated_rows(project: Project, sabotaged: Callable[[str], None]) -> None:
    log = project.path / "pids"
    sabotaged(f"print(os.getpid(), file=open({str(log)!r}, 'a'), flush=True)")
    project.run("--isolate=row", passed=2, skipped=1)
    pids = log.read_text(encoding="utf-8").split()
    assert len(pids) == len({*pids, str(os.getpid())}) - 1 == 3


def test_a_killed_run_is_resumed_with_its_finished_rows(project: Project) -> None:
    kernels = 'kernels = "torchao"'
    # The second row takes until the signal comes.
    endless = f"{kernels}\nnum_samples = 200000"
    project.edit(kernels, endless)
    with project.start() as process:
        try:
            processes.wait_until(project.results.exists)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    project.edit(endless, kernels)
    (before,) = project.report().results
    assert (before.id, before.status) == (PLAIN, Status.MEASURED)
    with project.start("--resume") as process:
        _, err = process.communicate(timeout=processes.HANG_S)
    assert process.returncode == 0, err
    assert f"{PLAIN}: taken over, " in err
    first, second, _ = project.report().results
    assert first == before
    assert (second.id, second.status) == (INT8, Status.MEASURED)


def test_pytest_resumes_and_keeps_rows_of_before(project: Project) -> None:
    project.run("--row=*none*", passed=1)
    before = project.report().results[0]
    result = project.run("--resume", passed=2, skipped=1)
    result.stdout.fnmatch_lines([f"*{PLAIN}: taken over, *"])
    first, second, _ = project.report().results
    assert first == before
    assert second.id == INT8
    # The first row has no baseline: it ends the run before the second is taken over.
    project.edit("[[row]]\n", "[[row]]\ntop_k = 3\n")
    options = ("--compare", "-x", "--row=*top*", "--row=*int8*")
    project.run("--resume", *options, failed=1)
    assert second in project.report().results


def test_a_run_slowed_or_of_another_machine_is_not_resumed(project: Project) -> None:
    project.run("--row=*none*", "--inject-slowdown=*=50", passed=1)
    threads = project.report().environment.threads
    for there, message in (
        (threads, f"*last.json measured {PLAIN} with an inject-slowdown of 50%*"),
        (77, f"*resume: *last.json is of another run: threads: 77 -> {threads}*"),
    ):
        before, after = f'"threads": {threads}', f'"threads": {there}'
        project.edit(before, after, project.results)
        text = project.results.read_bytes()
        result = project.run("--resume", "--row=*none*")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([message])
        assert project.results.read_bytes() == text, "the file stays as it was"


def test_one_of_two_runs_on_a_device_waits_or_is_refused(project: Project) -> None:
    with locked(torch.device("cpu"), wait=False, progress=print):
        result = project.run()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        owner = f"*cpu: in use by another run, process {os.getpid()}: "
        message = "*; two at once would slow each other down: wait for it (--wait)*"
        result.stderr.fnmatch_lines([owner + message])
        process = project.start("--wait")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "in use by another run" in line
        assert line.endswith("; waiting\n")
    _, err = process.communicate(timeout=processes.HANG_S)
    assert process.returncode == 0, err


def test_a_time_budget_starts_no_row_it_cannot_finish(project: Project) -> None:
    project.run("--time-budget=0.000001", skipped=3)
    (first, *_) = project.report().results
    assert first.status is Status.NOT_RUN
    assert str(first.reason) == (
        "time-budget: 0 of 1e-06 s are left, and it needs about 0 s by the longest row"
        " so far"
    )
    project.results.unlink()
    project.record(warm_up_s=1e6)
    options = ("--benchmark-compare", "--time-budget=600", "--row=*none*")
    project.run(*options, failed=1)
    comparison = project.report().comparisons[0]
    assert comparison.verdict is Verdict.NOT_RUN
    assert "by the baseline; the baseline has this row" in comparison.reason
