"""Ctrl-C, SIGTERM and kill -9 lose no row that ended, and how a run goes on is said."""

import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest

from llama_perf.results.run import Status
from tests.correctness.support.plugin_project import INT8, PLAIN, Project
from tests.correctness.support.processes import HANG_S, alive, wait_until

pytest_plugins = ["pytester"]
KERNELS = 'kernels = "torchao"'
# A second row that takes until a signal comes.
ENDLESS = f"{KERNELS}\nmax_new_tokens = 1000000"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


@pytest.mark.parametrize("number", CODES, ids=str)
def test_a_run_that_is_ended_is_resumed(
    project: Project, number: signal.Signals
) -> None:
    project.edit(KERNELS, ENDLESS)
    with project.start() as process:
        try:
            wait_until(project.results.exists)
            children = psutil.Process(process.pid).children()
            locks = [[file.path for file in child.open_files()] for child in children]
            pids = [child.pid for child in children]
        finally:
            process.send_signal(number)
        out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == CODES[number], err
    resume = project.run_words("--resume")
    if number != signal.SIGKILL:
        by = " by SIGTERM" if number == signal.SIGTERM else ""
        *_, says, command = err.splitlines()
        assert says == f"interrupted{by}: 2 of 3 rows did not end; to continue:"
        words = shlex.split(command)
        assert words[words.index("run") :] == resume
        assert "1 row: 1 run, 0 NOT_RUN" in out
        assert "Traceback" not in err
    # A worker does not outlive the process that started it, and both have its lock.
    assert len(pids) == 2, "a worker and its guard"
    assert all(any(path.endswith(".lock") for path in paths) for paths in locks)
    wait_until(lambda: not any(map(alive, pids)))
    project.edit(ENDLESS, KERNELS)
    (before,) = project.report().results
    assert (before.id, before.status) == (PLAIN, Status.MEASURED)
    _, err = project.cli(*resume)
    assert re.search(r"^\[1/3\] none +taken over: \d", err, re.MULTILINE)
    first, second, _ = project.report().results
    assert first == before
    assert (second.id, second.status) == (INT8, Status.MEASURED)
    result = project.run("--resume", passed=2, skipped=1)
    result.stdout.fnmatch_lines(
        ["[[]1/3] none * taken over: *", "[[]2/3] int8wo* taken over: *"]
    )
    assert project.report().results[:2] == (first, second)
    # The first row has no baseline: it ends the run before the second is taken over.
    project.edit("[[row]]\n", "[[row]]\ntop_k = 3\n")
    options = ("--compare", "-x", "--row=*top*", "--row=*int8*")
    project.run("--resume", *options, failed=1)
    assert second in project.report().results
    # A finished row that is taken over needs no time, whatever its baseline says.
    project.record(warm_up_s=1e6)
    words = project.run_words("--resume", "--compare", "--no-confirm", "--row=*int8*")
    _, err = project.cli(*words, code=None)
    assert "  taken over: " in err
    assert " left" not in err


def test_sigterm_ends_pytest_like_ctrl_c_and_its_last_line_resumes(
    project: Project,
) -> None:
    project.edit(KERNELS, ENDLESS)
    report = project.path / "report.md"
    words = ["tests/perf", *project.tiny_rows, "--markdown", str(report)]
    command = [sys.executable, "-m", "pytest", *words]
    with subprocess.Popen(
        command, cwd=project.path, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(project.results.exists)
            pids = [child.pid for child in psutil.Process(process.pid).children()]
        finally:
            process.terminate()
        # Whoever ends a job may say so again, and otherwise, at any moment.
        for number in (signal.SIGTERM, signal.SIGINT):
            wait_until(lambda: not any(map(alive, pids)))
            process.send_signal(number)
        out, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    assert "Terminated: SIGTERM" in out
    assert "Traceback" not in out
    assert "1 row: 1 run, 0 NOT_RUN" in out
    assert f"results: {project.results}\n" in out
    assert "none" in report.read_text(encoding="utf-8")
    said = "interrupted by SIGTERM: 2 of 3 rows did not end; to continue:\n  "
    (line,) = out.partition(said)[2].splitlines()[:1]
    assert line.endswith(" --resume")
    project.edit(ENDLESS, KERNELS)
    (before,) = project.report().results
    done = subprocess.run(
        line, shell=True, cwd=project.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "taken over: " in done.stdout
    first, second, _ = project.report().results
    assert first == before
    assert (second.id, second.status) == (INT8, Status.MEASURED)
