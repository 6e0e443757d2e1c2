"""Steps in processes of their own: budgets, logs, and ends that leave no process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.offline import steps
from scripts.offline.steps import Status, Step, StepRunner
from tests.correctness.support.processes import (
    HANG_S,
    alive,
    clock_that_waits_for,
    wait_until,
)


@pytest.fixture
def runner(tmp_path: Path) -> StepRunner:
    return StepRunner(tmp_path, budget_s=2 * HANG_S)


def python_step(code: str, name: str = "step", keep_back_s: float = 0.0) -> Step:
    return Step(name, [sys.executable, "-c", code], HANG_S, keep_back_s)


def summary_of(folder: Path) -> list[str]:
    """How each step ended, without its time."""
    lines = (folder / "summary.txt").read_text().splitlines()
    return sorted(line.split(",")[0] for line in lines)


def test_a_step_ends_well_or_failed_and_the_next_one_runs(
    runner: StepRunner, tmp_path: Path
) -> None:
    assert runner.run(python_step("raise SystemExit(3)")).reason == "exit code 3"
    (tmp_path / "tabulate.py").write_text("print('ours')")
    runner.path.insert(0, str(tmp_path))
    code = "import tabulate, llama_perf"
    assert runner.run(python_step(code, "added")).status is Status.OK
    # Added folders come first.
    assert (tmp_path / "added.txt").read_text() == "ours\n"
    assert not runner.all_ok
    late = runner.run(python_step("print()", "late", keep_back_s=2 * HANG_S - 1))
    assert (late.status, late.reason) == (Status.OUT_OF_TIME, "not started")
    assert not (tmp_path / "late.txt").exists()
    failed, ok = "failed (exit code 3)", "out of time (not started)"
    assert summary_of(tmp_path) == [
        "added            ok",
        f"late             {ok}",
        f"step             {failed}",
    ]


def test_steps_side_by_side_each_have_their_log_and_the_summary_has_all(
    runner: StepRunner, tmp_path: Path
) -> None:
    runner.run_together(
        [
            python_step(f"print({number}); raise SystemExit({code})", f"step-{number}")
            for number, code in ((1, 0), (2, 5), (3, 0))
        ]
    )
    logs = [(tmp_path / f"step-{number}.txt").read_text() for number in (1, 2, 3)]
    assert logs == ["1\n", "2\n", "3\n"]
    assert summary_of(tmp_path) == [
        "step-1           ok",
        "step-2           failed (exit code 5)",
        "step-3           ok",
    ]


# Both print their process's number. The second one outlives an interrupt.
DEAF = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(3600)
"""
PARENT = f"""
import os, subprocess, sys
print(os.getpid(), flush=True)
try:
    subprocess.Popen([sys.executable, "-c", {DEAF!r}]).wait()
except KeyboardInterrupt:
    print("interrupted")
"""


def printed_by(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_a_step_out_of_time_keeps_what_it_wrote_and_leaves_no_process(
    runner: StepRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "step.txt"
    clock = clock_that_waits_for(lambda: len(printed_by(log)) > 1)
    clock.sleep = time.sleep
    runner._deadline = 2 * HANG_S
    monkeypatch.setattr(steps, "time", clock)
    outcome = runner.run(python_step(PARENT))
    reason = f"stopped after {HANG_S:.0f} s"
    assert (outcome.status, outcome.reason) == (Status.OUT_OF_TIME, reason)
    *pids, last = printed_by(log)
    assert last == "interrupted"
    wait_until(lambda: not any(alive(int(pid)) for pid in pids))


CHECK = f"""
import sys
from pathlib import Path
from scripts.offline.steps import Interrupted, Step, StepRunner

runner = StepRunner(Path(sys.argv[1]), budget_s=3600)
python = [sys.executable, "-c"]
try:
    with runner.interruptible():
        runner.run(Step("first", [*python, ""], 600))
        steps = [Step(name, [*python, {PARENT!r}], 600) for name in sys.argv[2:]]
        runner.run_together(steps) if len(steps) > 1 else runner.run(*steps)
        runner.run(Step("last", ["true"], 600))
except Interrupted:
    sys.exit(f"ended by {{runner.signal.name}}")
"""


@pytest.mark.parametrize("names", [("one",), ("one", "two")], ids=len)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_the_steps_and_their_children(
    tmp_path: Path, number: signal.Signals, names: tuple[str, ...]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHECK, str(tmp_path), *names],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    logs = [tmp_path / f"{name}.txt" for name in names]
    wait_until(lambda: all(len(printed_by(log)) == 2 for log in logs))
    pids = [int(pid) for log in logs for pid in printed_by(log)]
    process.send_signal(number)
    assert process.communicate()[1] == f"ended by {number.name}\n"
    wait_until(lambda: not any(map(alive, pids)))
    interrupted = [f"{name:<16} interrupted" for name in names]
    assert summary_of(tmp_path) == ["first            ok", *interrupted]
    assert not (tmp_path / "last.txt").exists()
    assert [printed_by(log)[2:] for log in logs] == [["interrupted"]] * len(names)
