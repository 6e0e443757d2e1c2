"""Steps in processes of their own: budgets, logs, and ends that leave no process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.offline import steps
from scripts.offline.options import ROOT
from scripts.offline.steps import Status, Step, StepRunner
from tests.correctness.support.processes import HANG_S, alive, wait_until


def runner_in(folder: Path, budget_s: float = 2 * HANG_S) -> StepRunner:
    return StepRunner(root=ROOT, out=folder, budget_s=budget_s)


def python_step(code: str, **fields: Any) -> Step:
    defaults: dict[str, Any] = {"name": "step", "limit_s": HANG_S, "log": "log.txt"}
    return Step(command=[sys.executable, "-c", code], **{**defaults, **fields})


def test_a_step_ends_well_or_failed_and_the_next_one_runs(tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    assert runner.run(python_step("raise SystemExit(3)")).reason == "exit code 3"
    assert runner.run(python_step("print('here')")).status is Status.OK
    assert (tmp_path / "log.txt").read_text() == "here\n"
    statuses = [outcome.status for outcome in runner.outcomes]
    assert statuses == [Status.FAILED, Status.OK]
    assert not runner.all_ok
    assert "step             failed (exit code 3)" in runner.summary()


def end_time_after(
    monkeypatch: pytest.MonkeyPatch, happened: Callable[[], bool]
) -> None:
    """End a step's time when something has happened, and give it time to stop."""
    ends = steps._ends

    def once(_process: subprocess.Popen[bytes], _timeout_s: float | None) -> bool:
        monkeypatch.setattr(steps, "_ends", ends)
        monkeypatch.setattr(steps, "GRACE_S", HANG_S)
        wait_until(happened)
        return False

    monkeypatch.setattr(steps, "_ends", once)


def test_a_step_out_of_time_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import time
try:
    print("begun", flush=True)
    time.sleep(3600)
except KeyboardInterrupt:
    print("interrupted")
"""
    log = tmp_path / "log.txt"
    end_time_after(monkeypatch, lambda: log.read_text() == "begun\n")
    outcome = runner_in(tmp_path).run(python_step(code))
    assert outcome.status is Status.OUT_OF_TIME
    assert outcome.reason == "stopped after 1200 s"
    assert log.read_text() == "begun\ninterrupted\n"


# A process that prints its number and outlives an interrupt.
DEAF = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(3600)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"


def test_a_stopped_step_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.txt"
    end_time_after(monkeypatch, lambda: log.read_text().endswith("\n"))
    runner_in(tmp_path).run(python_step(PARENT))
    pid = int(log.read_text().split()[0])
    wait_until(lambda: not alive(pid))


def test_a_step_without_time_left_is_not_started(tmp_path: Path) -> None:
    runner = runner_in(tmp_path, budget_s=20.0)
    outcome = runner.run(python_step("print('here')", keep_back_s=15.0))
    assert (outcome.status, outcome.reason) == (Status.OUT_OF_TIME, "not started")
    assert not (tmp_path / "log.txt").exists()


def test_a_step_imports_from_added_folders_first(tmp_path: Path) -> None:
    (tmp_path / "tabulate.py").write_text("print('ours')")
    runner = runner_in(tmp_path)
    runner.add_to_path(tmp_path)
    runner.run(python_step("import tabulate, llama_perf"))
    assert (tmp_path / "log.txt").read_text() == "ours\n"


def test_steps_side_by_side_each_have_their_log_and_the_summary_has_all(
    tmp_path: Path,
) -> None:
    runner_in(tmp_path).run_together(
        [
            python_step(
                f"print({number}); raise SystemExit({code})",
                name=f"step-{number}",
                log=f"{number}.txt",
            )
            for number, code in ((1, 0), (2, 5), (3, 0))
        ]
    )
    logs = [(tmp_path / f"{number}.txt").read_text() for number in (1, 2, 3)]
    assert logs == ["1\n", "2\n", "3\n"]
    summary = (tmp_path / "summary.txt").read_text()
    assert sorted(line.split(",")[0] for line in summary.splitlines()) == [
        "step-1           ok",
        "step-2           failed (exit code 5)",
        "step-3           ok",
    ]


# The steps print their process's number and wait for the end. One of them also starts
# a process that outlives an interrupt.
CHECK = f"""
import sys
from pathlib import Path
from scripts.offline.steps import Step, StepRunner, until_interrupted

out = Path(sys.argv[1])
begin = "import os, time; print(os.getpid(), flush=True)"
codes = [begin + "; time.sleep(3600)", begin + "; " + {PARENT!r}]
python = [sys.executable, "-c"]

def check():
    runner = StepRunner(root=out, out=out, budget_s=3600)
    runner.run(Step(name="first", command=[*python, ""], limit_s=600))
    steps = [
        Step(name=f"step-{{n}}", command=[*python, code], limit_s=600, log=f"{{n}}.txt")
        for n, code in enumerate(codes)
    ]
    if sys.argv[2] == "together":
        runner.run_together(steps)
    else:
        runner.run(steps[1])
    runner.run(Step(name="last", command=["true"], limit_s=600, log="last.txt"))
    return 0

sys.exit(until_interrupted(check, name="check", then="look there"))
"""


@pytest.mark.parametrize("how", ["together", "one by one"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_the_steps_and_their_children(
    tmp_path: Path, number: signal.Signals, how: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHECK, str(tmp_path), how],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    logs = [tmp_path / "1.txt"]
    logs += [tmp_path / "0.txt"] if how == "together" else []
    wait_until(lambda: all(log.exists() and log.read_text() for log in logs))
    wait_until(lambda: logs[0].read_text().count("\n") == 2)
    pids = [int(log.read_text().split()[0]) for log in logs]
    pids += [child.pid for child in psutil.Process(pids[0]).children()]
    assert len(pids) == len(logs) + 1
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == f"check: ended by {number.name}; look there\n"
    wait_until(lambda: not any(map(alive, pids)))
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    ends = [line.split(",")[0].split(maxsplit=1) for line in sorted(summary)]
    interrupted = [[f"step-{log.stem}", "interrupted"] for log in sorted(logs)]
    assert ends == [["first", "ok"], *interrupted]
    assert not (tmp_path / "last.txt").exists()


@pytest.mark.parametrize("limit_s", [HANG_S, 0.5], ids=["ends", "is stopped"])
def test_a_running_step_holds_no_lock_that_a_signal_could_leave_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> None:
    """`Popen.wait` and `poll` take one; they are called once the process has ended."""
    original = subprocess.Popen.wait

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        return original(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    monkeypatch.setattr(subprocess.Popen, "poll", wait)
    seconds = 0.2 if limit_s == HANG_S else HANG_S
    runner_in(tmp_path).run(
        python_step(f"import time; time.sleep({seconds})", limit_s=limit_s)
    )
