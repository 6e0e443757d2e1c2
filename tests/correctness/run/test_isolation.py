"""Nothing measured is lost: crashes, kills, interrupts, hangs, two runs at once."""

import itertools
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.errors import RecordError
from llama_perf.results.run import RowResult, Status, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.compared_run import ComparedRun
from llama_perf.run.lock import locked
from llama_perf.run.options import RunRequest
from llama_perf.run.worker import Worker
from llama_perf.run.worker_process import worker_command
from llama_perf.run.worker_protocol import WorkerResult
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.processes import (
    HANG_S,
    alive,
    clock_that_waits_for,
    wait_until,
)
from tests.correctness.support.record_samples import measured, unmeasured
from tests.correctness.support.terminals import quiet

pytest_plugins = ["pytester"]
ROW = RowSpec(
    model="stories15M", dtype="float32", device="cpu", max_new_tokens=2, num_samples=2
)
KNOWN = replace(ROW, upstream_issue="pytorch/ao#2376")


def run(**options: Any) -> WorkerResult:
    return worker.run_in_process(ROW, options=RunRequest(**options), devices=["cpu"])


def run_instead(patch: pytest.MonkeyPatch, code: str) -> None:
    """Have workers run other Python code, which has its `task` and can `reply`."""
    head = (
        "import json, os, sys, time\n"
        "task = json.loads(sys.stdin.readline())\n"
        "def reply(text): os.write(int(sys.argv[1]), (text + '\\n').encode())\n"
    )
    start = [sys.executable, "-c", head + code]
    command = Mock(side_effect=lambda *arguments: [*start, str(arguments[-1])])
    patch.setattr(worker, "worker_command", command)


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
def test_broken_workers(
    monkeypatch: pytest.MonkeyPatch, code: str, ending: str, output: str
) -> None:
    run_instead(monkeypatch, code)
    devices = ["cuda", "cpu"]
    with closing(Worker(options=RunRequest(), devices=devices)) as one:
        # The process has ended, so the second row ends for the same reason.
        for _ in range(2):
            ended = one.run(ROW, print)
            assert ended.environment is None
            assert ended.result.status is Status.INVALID
            assert ended.result.id == ROW.id
            assert ended.result.reason == f"its process {ending}: {output}"


def test_a_damaged_result_names_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run_instead(monkeypatch, "reply('{')")
    with pytest.raises(RecordError, match=f"the process of {ROW.id}: Invalid JSON"):
        run()


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_row_that_hangs_is_ended_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interrupted: bool
) -> None:
    pids, stuck = tmp_path / "pids", tmp_path / "stuck"
    run_instead(
        monkeypatch,
        "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "code = 'import time; time.sleep(3600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"print('stuck', flush=True); open({str(stuck)!r}, 'w'); time.sleep(3600)",
    )
    if interrupted:

        def interrupt() -> None:
            wait_until(stuck.exists)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run()
        thread.join()
    else:
        monkeypatch.setattr(worker, "time", clock_that_waits_for(stuck.exists))
        result = run(row_timeout=2.0).result
        assert result.status is Status.INVALID
        # It is not even ready: that takes no endless time either.
        limits = "2 s (row-timeout) and 300 s to start"
        assert result.reason == f"its process was ended after {limits}: stuck"
    process, child = map(int, pids.read_text(encoding="utf-8").split())
    assert not alive(process)
    wait_until(lambda: not alive(child))


# Older revisions' processes begin with the row's first step.
@pytest.mark.parametrize("first", ["ready", "building"])
def test_a_rows_time_counts_from_the_first_reply_of_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: str
) -> None:
    started = tmp_path / "started"
    run_instead(
        monkeypatch,
        f"while not os.path.exists({str(started)!r}): time.sleep(0.01)\n"
        "print('running', flush=True)\n"
        f'reply(\'{{"progress": "{first}"}}\'); time.sleep(3600)',
    )

    def seconds() -> Iterator[float]:
        yield 0.0
        # The start takes a hundred times as long as the row may.
        started.touch()
        yield from itertools.count(200.0)

    clock = seconds()
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=partial(next, clock)))
    monkeypatch.setattr(worker, "_POLL_S", 0.2)
    steps: list[str] = []
    with closing(Worker(options=RunRequest(row_timeout=2), devices=["cpu"])) as one:
        reason = one.run(ROW, steps.append).result.reason
    assert reason == "its process was ended after 2 s (row-timeout): running"
    assert next(clock) < 290, "it had more time than a row has"
    assert steps == [first] * (first != "ready")


def test_a_silent_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GRACE_S", 0.2)
    run_instead(monkeypatch, "os.close(int(sys.argv[1])); time.sleep(3600)")
    assert str(run().result.reason).startswith("its process was ended by signal 9")


@pytest.mark.parametrize(
    ("result", "isolate", "processes"),
    [
        (unmeasured(Status.INVALID, "so", ROW), "session", 2),
        (unmeasured(Status.NOT_RUN, "so", KNOWN), "session", 2),
        # It cannot run here, and nothing of it did.
        (unmeasured(Status.NOT_RUN, "so", ROW), "session", 1),
        (measured(KNOWN), "session", 1),
        (measured(ROW), "row", 2),
    ],
)
def test_a_row_that_raised_or_is_isolated_leaves_no_process_to_the_next(
    monkeypatch: pytest.MonkeyPatch, result: RowResult, isolate: str, processes: int
) -> None:
    started = Mock()
    ended = WorkerResult(result=result, environment=None)
    started.return_value.run.return_value = ended
    monkeypatch.setattr(worker, "Worker", started)
    request = RunRequest(isolate=isolate)
    rows = [result.row] * 2
    with closing(ComparedRun(rows, request, display=quiet())) as one:
        for row in rows:
            one.run_row(row)
    assert started.call_count == started.return_value.close.call_count == processes


def test_broken_processes(project: Project) -> None:
    log, lost = project.path / "pids", project.path / "lost"
    project.patch.setattr(worker, "Worker", Worker)
    # At each reading a day later: the row's time counts from one of them.
    days = itertools.count(1)
    clock = SimpleNamespace(
        monotonic=lambda: 86_400.0 * next(days) if lost.exists() else 0.0
    )
    project.patch.setattr(worker, "time", clock)
    # Only one that has said that it is ready can be late.
    project.patch.setattr(worker, "_START_S", math.inf)
    sabotage = f"""
import os, time
from llama_perf.results.measurement import Ceiling
from llama_perf.run import session

def run_row(self, row, measured=session.Session.run_row, **rest):
    print(os.getpid(), file=open({str(log)!r}, "a"), flush=True)
    if row.id == {INT8!r}:
        os.kill(os.getpid(), 9)
    if row.id == {FP6!r}:
        print("lost", flush=True)
        open({str(lost)!r}, "w")
        time.sleep(3600)
    return measured(self, row, **rest)

session.measure_ceiling = lambda _: Ceiling(read_gb_s=20.0)
session.Session.run_row = run_row
"""

    def sabotaged(*arguments: Any) -> list[str]:
        *head, start, number = worker_command(*arguments)
        return [*head, f"{sabotage}{start}", number]

    project.patch.setattr(worker, "worker_command", sabotaged)
    result = project.run("--row-timeout=20", passed=1, failed=2)
    ended = {result.id: result.status for result in project.report().results}
    assert ended.pop(PLAIN) is Status.MEASURED
    assert ended == dict.fromkeys((INT8, FP6), Status.INVALID)
    result.stdout.fnmatch_lines(
        [
            f"*INVALID {INT8}: its process was ended by signal 9*",
            f"*INVALID {FP6}: its process was ended after 20 s (row-timeout): *lost",
        ]
    )
    # A row shares the process of the one before it, unless that broke.
    *shared, hung = map(int, log.read_text(encoding="utf-8").split())
    assert len(shared) == 2
    assert hung not in shared
    assert len({*shared}) == 1
    assert not any(map(alive, [hung, *shared]))


def test_a_run_slowed_or_of_another_machine_is_not_resumed(project: Project) -> None:
    project.run("--row=*none*", "--inject-slowdown=*=50", passed=1)
    threads = project.report().environment.threads
    for there, message in (
        (threads, f"last.json measured {PLAIN} with an inject-slowdown of 50%"),
        (77, f"last.json is of another run: threads: 77 -> {threads}"),
    ):
        before, after = f'"threads": {threads}', f'"threads": {there}'
        project.edit(before, after, project.results)
        text = project.results.read_bytes()
        assert message in project.refusal("--resume", "--row=*none*")
        assert project.results.read_bytes() == text, "the file stays as it was"


def test_one_of_two_runs_on_a_device_waits_or_is_refused(project: Project) -> None:
    with locked(torch.device("cpu"), wait=False, notify=print):
        refusal = project.refusal()
        assert f"cpu: in use by another run, process {os.getpid()}: " in refusal
        assert "; two at once would slow each other down: wait for it (" in refusal
        process = project.start("--wait")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "in use by another run" in line
        assert line.endswith("; waiting\n")
    _, err = process.communicate(timeout=HANG_S)
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
