"""A row in a process of its own: what comes back, and what a broken process costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import runner, worker
from llama_perf.run.request import RunOptions, Slowdown
from tests.correctness.support.processes import alive, clock_that_waits_for, wait_until

ROW = RowSpec(
    model="stories15M", dtype="float32", device="cpu", max_new_tokens=2, num_samples=2
)


def run(
    progress: Callable[[str], None] = lambda _text: None, **options: Any
) -> worker.WorkerResult:
    return worker.run_in_process(
        ROW, options=RunOptions(**options), devices=["cpu"], progress=progress
    )


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a worker run other Python code, which has its `task` and can `reply`."""

    def replace_code(code: str) -> None:
        head = (
            "import json, os, sys, time\n"
            "task = json.loads(sys.stdin.readline())\n"
            "def reply(text): os.write(int(sys.argv[1]), (text + '\\n').encode())\n"
        )
        monkeypatch.setattr(
            worker,
            "worker_command",
            lambda _python, _package, replies: [
                sys.executable,
                "-c",
                head + code,
                str(replies),
            ],
        )

    return replace_code


def test_a_row_is_measured_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # The working directory's modules are not in the way.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise ImportError", encoding="utf-8")
    slowed = Slowdown(glob="stories*", share=0.5)
    steps: list[str] = []
    ended = run(steps.append, slowdowns=(slowed,))
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
    ("code", "reason"),
    [
        (
            "print('one', flush=True); print('two', file=sys.stderr); sys.exit(7)",
            "its process ended with code 7: one | two",
        ),
        (
            "os.kill(os.getpid(), 9)",
            "its process was ended by signal 9, as a system out of memory does: no"
            " output",
        ),
        (
            "[print(n, flush=True) for n in range(9)]; os.abort()",
            "its process was ended by signal 6: 4 | 5 | 6 | 7 | 8",
        ),
        ("", "its process ended with code 0: no output"),
    ],
)
def test_a_process_that_breaks_is_an_invalid_row(
    instead: Callable[[str], None], code: str, reason: str
) -> None:
    instead(code)
    ended = run()
    assert ended.environment is None
    assert ended.result.status is Status.INVALID
    assert ended.result.id == ROW.id
    assert ended.result.reason == reason


def test_a_damaged_result_names_its_row(instead: Callable[[str], None]) -> None:
    instead("reply('{')")
    with pytest.raises(RecordError, match=f"the process of {ROW.id}: Invalid JSON"):
        run()


def test_an_interrupt_ends_the_process_too(
    instead: Callable[[str], None], tmp_path: Path
) -> None:
    started = tmp_path / "pid"
    instead(
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(started)!r} + '_', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(started)!r} + '_', {str(started)!r})\n"
        "time.sleep(3600)"
    )

    def interrupt() -> None:
        while not started.exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run()
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text(encoding="utf-8")), 0)


def test_a_worker_gets_the_devices_of_the_whole_run(
    instead: Callable[[str], None],
) -> None:
    instead("print(task['devices']); sys.exit(1)")
    ended = worker.run_in_process(ROW, options=RunOptions(), devices=["cuda", "cpu"])
    assert str(ended.result.reason).endswith(": ['cpu', 'cuda']")


def test_a_row_that_hangs_is_ended_with_what_it_started(
    instead: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    ended = run(row_timeout_s=2.0)
    assert ended.result.status is Status.INVALID
    reason = "its process was ended after 2 s (row-timeout): stuck"
    assert ended.result.reason == reason
    wait_until(lambda: not alive(int(child.read_text(encoding="utf-8"))))


def test_a_process_that_replies_no_more_is_ended(
    instead: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_GRACE_S", 0.2)
    instead("os.close(int(sys.argv[1])); time.sleep(3600)")
    assert str(run().result.reason).startswith("its process was ended by signal 9")


def test_one_process_runs_several_rows() -> None:
    with closing(worker.Worker(options=RunOptions(), devices=["cpu"])) as one:
        first = one.run(ROW)
        pid = one.pid
        other = replace(ROW, max_new_tokens=3)
        second = one.run(other)
        assert one.pid == pid
    assert not alive(pid)
    assert first.result.measurement is not None, first.result.reason
    assert second.result.measurement is not None, second.result.reason
    assert second.result.id == other.id


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
    started: list[None] = []

    class Fake:
        def __init__(self, **_options: object) -> None:
            started.append(None)

        def run(self, row: RowSpec, **_options: object) -> worker.WorkerResult:
            result = RowResult(id=row.id, row=row, status=status, reason="so")
            return worker.WorkerResult(result=result, environment=None)

        def close(self) -> None:
            pass

    monkeypatch.setattr(runner, "Worker", Fake)
    row = replace(ROW, upstream_issue=issue)
    with closing(runner.Runner([row], options=RunOptions())) as one:
        for _ in range(2):
            one.run_row(row)
    assert len(started) == processes


def test_a_task_for_a_process_that_is_gone_is_an_invalid_row(
    instead: Callable[[str], None],
) -> None:
    instead("sys.exit(3)")
    with closing(worker.Worker(options=RunOptions(), devices=["cpu"])) as one:
        for _ in range(2):
            reason = "its process ended with code 3: no output"
            assert one.run(ROW).result.reason == reason


def test_a_worker_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    code = (
        "import os, signal, sys\n"
        "from llama_perf.run import worker\n"
        "from llama_perf.run.request import RunOptions\n"
        "from llama_perf.rows.spec import RowSpec\n"
        "row = RowSpec(model='stories15M', dtype='float32', device='cpu',\n"
        "    max_new_tokens=200, num_samples=100000)\n"
        "one = worker.Worker(options=RunOptions(), devices=['cpu'])\n"
        "def kill(text):\n"
        "    if text.startswith('sample') or text != 'building':\n"
        f"        open({str(started)!r}, 'w').write(str(one.pid))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "one.run(row, progress=kill)\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(int(started.read_text(encoding="utf-8"))))
