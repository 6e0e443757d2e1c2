"""A row in a process of its own: what comes back, and what a broken process costs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import compared_run, worker
from llama_perf.run.compared_run import ComparedRun
from llama_perf.run.options import RunRequest
from tests.correctness.support.processes import alive, clock_that_waits_for, wait_until

ROW = RowSpec(
    model="stories15M", dtype="float32", device="cpu", max_new_tokens=2, num_samples=2
)
Instead = Callable[[str], None]


def run(**options: Any) -> worker.WorkerResult:
    return worker.run_in_process(ROW, options=RunRequest(**options), devices=["cpu"])


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Instead:
    """Have a worker run other Python code, which has its `task` and can `reply`."""

    def replace_code(code: str) -> None:
        head = (
            "import json, os, sys, time\n"
            "task = json.loads(sys.stdin.readline())\n"
            "def reply(text): os.write(int(sys.argv[1]), (text + '\\n').encode())\n"
        )
        start = [sys.executable, "-c", head + code]
        monkeypatch.setattr(
            worker,
            "worker_command",
            lambda _python, _package, replies: [*start, str(replies)],
        )

    return replace_code


def test_a_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # The working directory's modules are not in the way.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise ImportError", encoding="utf-8")
    options = RunRequest(inject_slowdown=(("stories*", 0.5),))
    steps: list[str] = []
    with closing(worker.Worker(options=options, devices=["cpu"])) as one:
        ended = one.run(ROW, progress=steps.append)
    assert ended.result.row == ROW
    measurement = ended.result.measurement
    assert measurement is not None, ended.result.reason
    assert len(measurement.sample_ns) == 2
    assert measurement.injected_slowdown == 0.5
    assert steps[0] == "building"
    assert len(steps) > 1
    assert ended.environment is not None
    assert ended.environment.device_key.startswith("cpu-")


@pytest.mark.parametrize(
    ("code", "ending", "output"),
    [
        (
            "print('one', flush=True); print('two', file=sys.stderr); sys.exit(7)",
            "ended with code 7",
            "one | two",
        ),
        (
            "os.kill(os.getpid(), 9)",
            "was ended by signal 9, as a system out of memory does",
            "no output",
        ),
        (
            "[print(n, flush=True) for n in range(9)]; os.abort()",
            "was ended by signal 6",
            "4 | 5 | 6 | 7 | 8",
        ),
        # The devices of the whole run.
        ("print(task['devices'])", "ended with code 0", "['cpu', 'cuda']"),
    ],
)
def test_broken_workers(instead: Instead, code: str, ending: str, output: str) -> None:
    instead(code)
    devices = ["cuda", "cpu"]
    with closing(worker.Worker(options=RunRequest(), devices=devices)) as one:
        for shown in (output, "no output"):
            ended = one.run(ROW)
            assert ended.environment is None
            assert ended.result.status is Status.INVALID
            assert ended.result.id == ROW.id
            assert ended.result.reason == f"its process {ending}: {shown}"


def test_a_damaged_result_names_its_row(instead: Instead) -> None:
    instead("reply('{')")
    with pytest.raises(RecordError, match=f"the process of {ROW.id}: Invalid JSON"):
        run()


def test_an_interrupt_ends_the_process_too(instead: Instead, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    instead(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(started)!r} + '_', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(started)!r} + '_', {str(started)!r})\n"
        "time.sleep(3600)"
    )

    def interrupt() -> None:
        wait_until(started.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run()
    thread.join()
    assert not alive(int(started.read_text(encoding="utf-8")))


def test_a_row_that_hangs_is_ended_with_what_it_started(
    instead: Instead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child, stuck = tmp_path / "pid", tmp_path / "stuck"
    monkeypatch.setattr(worker, "time", clock_that_waits_for(stuck.exists))
    instead(
        "import subprocess\n"
        "code = 'import time; time.sleep(3600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        f"print('stuck', flush=True); open({str(stuck)!r}, 'w'); time.sleep(3600)"
    )
    result = run(row_timeout=2.0).result
    assert result.status is Status.INVALID
    assert result.reason == "its process was ended after 2 s (row-timeout): stuck"
    wait_until(lambda: not alive(int(child.read_text(encoding="utf-8"))))


def test_a_silent_process(instead: Instead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GRACE_S", 0.2)
    instead("os.close(int(sys.argv[1])); time.sleep(3600)")
    assert str(run().result.reason).startswith("its process was ended by signal 9")


@pytest.mark.parametrize(
    ("status", "issue", "processes"),
    [
        (Status.INVALID, None, 2),
        (Status.NOT_RUN, "pytorch/ao#2376", 2),
        # It cannot run here, and nothing of it did.
        (Status.NOT_RUN, None, 1),
        (Status.MEASURED, "pytorch/ao#2376", 1),
    ],
)
def test_a_row_that_raised_leaves_no_process_to_the_next(
    monkeypatch: pytest.MonkeyPatch, status: Status, issue: str | None, processes: int
) -> None:
    row = replace(ROW, upstream_issue=issue)
    result = RowResult(id=row.id, row=row, status=status, reason="so")
    ended = worker.WorkerResult(result=result, environment=None)
    started: list[None] = []

    def start(**_options: object) -> SimpleNamespace:
        started.append(None)
        return SimpleNamespace(run=lambda _row, **_: ended, close=lambda: None)

    monkeypatch.setattr(compared_run, "Worker", start)
    with closing(ComparedRun([row], RunRequest(), progress=print)) as one:
        for _ in range(2):
            one.run_row(row)
    assert len(started) == processes


def test_a_worker_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    code = (
        "import os, signal\n"
        "from llama_perf.run import worker\n"
        "from llama_perf.run.options import RunRequest\n"
        "from llama_perf.rows.spec import RowSpec\n"
        "row = RowSpec(model='stories15M', dtype='float32', device='cpu',\n"
        "    max_new_tokens=200, num_samples=100000)\n"
        "one = worker.Worker(options=RunRequest(), devices=['cpu'])\n"
        "def kill(text):\n"
        "    if text != 'building':\n"
        f"        open({str(started)!r}, 'w').write(str(one._process.pid))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "one.run(row, progress=kill)\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(int(started.read_text(encoding="utf-8"))))
