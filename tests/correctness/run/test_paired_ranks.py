"""Pairs of a row of several ranks: each process has them, also a fresh one."""

from contextlib import closing
from typing import Any

import pytest

from llama_perf.devices.cpu import CpuDevice
from llama_perf.gate.pairs import PairedRow
from llama_perf.run.options import RunRequest
from llama_perf.run.paired import RESIDENT, PairedProcesses, Side
from tests.correctness.support.made_up_workers import BASE, Machine
from tests.correctness.support.record_samples import RANKS, SHARED_ROW


def measured(machine: Machine, **changes: Any) -> PairedRow:
    """A row of two ranks and its first block."""
    machine.changes |= {"ranks": RANKS, **changes}
    with closing(
        PairedProcesses([SHARED_ROW], options=RunRequest(), base=Side(package=BASE))
    ) as processes:
        pairs = processes.measure(SHARED_ROW, print)
        processes.measure_again(pairs, print)
        processes.add_block(pairs, print)
    assert len(pairs.blocks) == 1
    return pairs


@pytest.mark.parametrize("keeps_rows", [True, False])
def test_each_process_has_the_ranks_of_its_row(
    machine: Machine, keeps_rows: bool
) -> None:
    """Also where the base is older, and fresh processes run in turn."""
    machine.keeps_rows["base"] = keeps_rows
    pairs = measured(machine)
    assert (pairs.way == RESIDENT) == keeps_rows
    assert set(machine.ranks) == {SHARED_ROW.ranks}


def test_ranks_of_a_cpu_count_together(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1 GB each, two of a side."""
    monkeypatch.setattr(CpuDevice, "free_memory_bytes", lambda _: 35 * 10**8)
    pairs = measured(machine, peak_memory_bytes=10**9, build_peak_bytes=None)
    assert str(pairs.way).endswith("since two rows need 4.0 GB of 3.5 GB")
