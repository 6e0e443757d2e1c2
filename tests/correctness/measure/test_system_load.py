"""What else the machine does, counted by the system."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import psutil
import pytest
import torch

from llama_perf.measure import system_load
from llama_perf.measure.system_load import LoadWatch
from llama_perf.results.measurement import SystemLoad
from scripts import ROOT
from scripts.studies.neighbour import busy_loop

CPU = torch.device("cpu")
# The neighbour is no child of the process that watches. That one has a child, which
# takes as much time and is its own.
WATCH = """
import sys, time
import psutil, torch
from llama_perf.measure.system_load import LoadWatch
from scripts.studies.neighbour import busy_loop

with busy_loop(runs=True):
    (child,) = psutil.Process().children()
    neighbour = psutil.Process(int(sys.argv[1]))
    watch = LoadWatch(torch.device("cpu"))
    before = neighbour.cpu_times().user, child.cpu_times().user
    while neighbour.cpu_times().user < before[0] + 0.5:
        time.sleep(0.1)
    took = neighbour.cpu_times().user - before[0], child.cpu_times().user - before[1]
    load = watch.load()
idle = psutil.cpu_count() * load.seconds - sum(took)
print(load.other_cores * load.seconds, *took, idle)
"""


def test_a_neighbours_time_is_seen_and_a_childs_is_not() -> None:
    # The ranks of other tests are children too.
    before = set(psutil.Process().children())
    with busy_loop(runs=True):
        (loop,) = set(psutil.Process().children()) - before
        command = [sys.executable, "-c", WATCH, str(loop.pid)]
        watched = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        )
    others, neighbours, childs, rest = map(float, watched.stdout.split())
    assert childs > 0
    # So many cores are counted in hundredths of a second, at both ends.
    error = 0.02 * (os.cpu_count() or 1) + 0.05
    assert neighbours - error < others < neighbours + rest + error


class Core(NamedTuple):
    """Seconds of a core, as Linux counts them."""

    user: float
    idle: float
    iowait: float
    steal: float
    guest: float


class OtherSystemsCore(NamedTuple):
    user: float
    idle: float


def watched(
    monkeypatch: pytest.MonkeyPatch,
    cores: Sequence[Any],
    *,
    usable: Sequence[int] = (0, 1),
    own_s: float = 1.0,
    seconds: float = 1.0,
    device: torch.device = CPU,
) -> SystemLoad | None:
    """The load of a machine whose counters go from 0 to `cores` in so many seconds."""
    zero = [type(core)(*[0.0] * len(core)) for core in cores]
    times: Iterator[Any] = iter([zero, zero, cores])
    process = Mock(children=lambda **_: [])
    process.cpu_times.side_effect = [
        SimpleNamespace(user=user, system=0, children_user=0, children_system=0)
        for user in (0.0, own_s)
    ]
    made_up = Mock(
        cpu_times=lambda **_: next(times),
        Process=lambda: process,
        getloadavg=lambda: (2.4, 0, 0),
        Error=psutil.Error,
    )
    clock = Mock(perf_counter=Mock(side_effect=[0.0, seconds]))
    monkeypatch.setattr(system_load, "psutil", made_up)
    monkeypatch.setattr(system_load, "time", clock)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(usable))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return LoadWatch(device).load()


FREE = Core(user=0.0, idle=0.9, iowait=0.1, steal=0.0, guest=0.0)
TAKEN = Core(user=0.97, idle=0.0, iowait=0.0, steal=0.03, guest=0.5)


def test_what_is_not_ours_is_others(monkeypatch: pytest.MonkeyPatch) -> None:
    load = watched(monkeypatch, [TAKEN, TAKEN])
    assert load is not None
    assert (load.cores, load.threads, load.seconds) == (2, 2, 1.0)
    assert load.other_cores == pytest.approx(0.94)
    assert load.lost_share == pytest.approx(0.47)
    assert load.steal_share == pytest.approx(0.03)
    words = "other processes took 0.9 of 2 cores, steal 3%, load average 2.4"
    assert load.summary == words


def test_cores_that_the_row_leaves_free_cost_it_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores, all_four = [TAKEN, TAKEN, FREE, FREE], (0, 1, 2, 3)
    # A row of two threads, whose own second is one of the two that were taken.
    load = watched(monkeypatch, cores, usable=all_four)
    assert load is not None
    assert load.other_cores == pytest.approx(0.94)
    assert load.lost_share == 0.0
    # Cores that it may not use do not count.
    load = watched(monkeypatch, cores, usable=(2, 3), own_s=0.0)
    assert load is not None
    assert (load.other_cores, load.steal_share) == (0.0, 0.0)
    load = watched(monkeypatch, [TAKEN, FREE], usable=(64, 65))
    assert load is not None
    assert load.cores == 2, "as many as are counted"
    # A GPU's row has one thread on the host.
    cuda = torch.device("cuda")
    load = watched(monkeypatch, [TAKEN, TAKEN], own_s=0.0, device=cuda)
    assert load is not None
    assert load.threads == 1
    assert load.lost_share == pytest.approx(0.94)


def test_what_is_not_known_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another system knows no steal, and no waiting either.
    load = watched(monkeypatch, [OtherSystemsCore(user=0.5, idle=0.5)] * 2, own_s=0.8)
    assert load is not None
    assert load.other_cores == pytest.approx(0.2)
    assert load.steal_share is None
    assert "steal" not in load.summary
    # A sandbox may count nothing, and a short time says too little.
    nothing = Core(*[0.0] * 5)
    assert watched(monkeypatch, [nothing] * 2) is None
    assert watched(monkeypatch, [TAKEN] * 2, seconds=0.2) is None
    refused = Mock(cpu_times=Mock(side_effect=PermissionError), Error=psutil.Error)
    monkeypatch.setattr(system_load, "psutil", refused)
    assert LoadWatch(CPU).load() is None
