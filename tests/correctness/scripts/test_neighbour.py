"""The study of a busy neighbour, from figures made up."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import Mock

import psutil
import pytest

from scripts import ROOT
from scripts.studies import neighbour
from tests.correctness.support.processes import alive, wait_until
from tests.correctness.support.record_samples import CPU_ROW, MEASUREMENT


def test_a_way_to_wait_is_all_that_its_process_knows_of_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created: list[dict[str, str]] = []

    def worker(**_: object) -> Mock:
        created.append(dict(os.environ))
        measurement = replace(MEASUREMENT, sample_ns=(10**9, 3 * 10**9, 4 * 10**9))
        measured = Mock(result=Mock(measurement=measurement))
        return Mock(run=lambda _row, _progress: measured)

    monkeypatch.setattr(neighbour, "Worker", worker)
    monkeypatch.setenv("OMP_WAIT_POLICY", "a user's own")
    for way in neighbour.WAYS:
        assert neighbour.times_s([CPU_ROW, CPU_ROW], way) == [3.0, 3.0]
    waiting = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    known = [{name: one[name] for name in waiting & one.keys()} for one in created]
    assert known == [way.variables for way in neighbour.WAYS]
    assert all(one["PATH"] == os.environ["PATH"] for one in created)


def test_a_loop_keeps_a_core_busy_until_its_rows_have_run() -> None:
    own = psutil.Process()
    before = {*own.children()}
    with neighbour.busy_loop(runs=False):
        before = set(own.children())
    with neighbour.busy_loop(runs=True):
        (loop,) = set(own.children()) - before
        while loop.cpu_times().user < 0.1:
            time.sleep(0.01)
    assert not loop.is_running()


def test_seconds_beside_a_neighbour_are_compared_within_a_round() -> None:
    quiet_round, slow_round = ([[s]] * len(neighbour.WAYS) for s in (1.0, 4.0))
    slow_round[1] = [6.0]
    loop, *others = neighbour.table(["eager"], [quiet_round, slow_round]).splitlines()[
        2:
    ]
    assert "1.25 (1.00-1.50)" in loop
    assert len(others) == len(neighbour.WAYS) - 2
    assert all("1.00 (1.00-1.00)" in line for line in others)


def test_a_loop_ends_with_a_process_that_was_killed() -> None:
    program = """
from scripts.studies import neighbour
with neighbour.busy_loop(runs=True):
    print("busy", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as study:
        assert study.stdout is not None
        assert study.stdout.readline() == b"busy\n"
        (loop,) = psutil.Process(study.pid).children()
        study.kill()
    wait_until(lambda: not alive(loop.pid))


def test_a_loop_that_waits_takes_less() -> None:
    own = psutil.Process()
    before = {*own.children()}
    with neighbour.busy_loop(runs=True, share=0.1):
        (loop,) = {*own.children()} - before

        def share() -> float:
            before_s, start_s = loop.cpu_times().user, time.perf_counter()
            time.sleep(1.0)
            took_s = loop.cpu_times().user - before_s
            return took_s / (time.perf_counter() - start_s)

        # Python's own start, which is no part of it, may fall into the first second.
        wait_until(lambda: 0 < share() < 0.5)
