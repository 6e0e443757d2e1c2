"""Whoever ends a check on a card leaves no process behind, and finds what it did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.correctness.support.processes import alive, wait_until

ROOT = Path(__file__).resolve().parents[3]
# Its steps say which process they are, and wait for the end; one of them also starts a
# process that outlives an interrupt.
CHECK = """
import sys
from pathlib import Path
from scripts.offline.steps import Step, StepRunner, until_interrupted

out = Path(sys.argv[1])
deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
child = deaf + "; print('deaf', flush=True); time.sleep(3600)"
begin = "import os, subprocess, sys, time; print(os.getpid(), flush=True)"
parent = f"subprocess.run([sys.executable, '-c', {child!r}])"
codes = [f"{begin}; time.sleep(3600)", f"{begin}; {parent}"]
python = [sys.executable, "-c"]

def check():
    runner = StepRunner(root=out, out=out, budget_s=3600)
    runner.run(Step(name="first", command=[*python, ""], limit_s=600))
    steps = [
        Step(name=f"step-{n}", command=[*python, code], limit_s=600, log=f"{n}.txt")
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


@pytest.mark.parametrize("how", ["together", "alone"])
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
    wait_until(lambda: "deaf" in logs[0].read_text())
    begun = [int(log.read_text().split()[0]) for log in logs]
    begun += [each.pid for each in psutil.Process(begun[0]).children()]
    assert len(begun) == len(logs) + 1
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == 128 + number
    assert told == f"check: ended by {number.name}; look there\n"
    wait_until(lambda: not any(map(alive, begun)))
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    ends = [line.split(",")[0].split(maxsplit=1) for line in sorted(summary)]
    steps = [[f"step-{log.stem}", "interrupted"] for log in sorted(logs)]
    assert ends == [["first", "ok"], *steps]
    assert not (tmp_path / "last.txt").exists()


@pytest.mark.parametrize("script", ["cuda_check", "cuda_table"])
def test_a_check_that_is_asked_to_end_leaves_nothing(
    tmp_path: Path, script: str
) -> None:
    out, scratch, wheels = (tmp_path / name for name in ("out", "scratch", "wheels"))
    scratch.mkdir()
    wheels.mkdir()
    words = ["--rehearse", "--wheels", str(wheels), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(scratch)},
    )
    log = "machine.txt" if script == "cuda_check" else "rehearsal-1-of-1.txt"
    wait_until((out / log).exists)
    steps = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert told.startswith(f"{script}: ended by SIGTERM; ")
    assert told.count("\n") == 1
    wait_until(lambda: not any(alive(each.pid) for each in steps))
    assert not list(scratch.glob("cuda-*"))
    step = "machine" if script == "cuda_check" else "rehearsal"
    assert f"{step:<16} interrupted" in (out / "summary.txt").read_text()
