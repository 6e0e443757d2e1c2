"""The ceiling of decoding: what the machine reads from memory."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

from llama_perf.measure import bandwidth
from llama_perf.measure.bandwidth import read_gb_s

CPU = torch.device("cpu")


def test_this_machines_bandwidth_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 64 * 2**20)
    monkeypatch.setattr(bandwidth, "_ROUNDS", 3)
    # A neighbour may take all but a little of it.
    assert 0 < read_gb_s(CPU) < 2000


def test_the_best_round_counts_and_the_first_reading_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock is read before and after each round; between rounds it moves on too.
    steps = [0.0, 4.0, 9.0, 2.0, 9.0, 5.0]
    clock = accumulate(steps)
    monkeypatch.setattr(bandwidth, "time", SimpleNamespace(perf_counter=clock.__next__))
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 4_000_000)
    monkeypatch.setattr(bandwidth, "_ROUNDS", 3)
    assert read_gb_s(CPU) == pytest.approx(4e6 / 2.0 / 1e9)
    assert next(clock, None) is None, "a reading outside the rounds was timed"


def test_all_of_the_buffer_is_read_in_every_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    original = torch.Tensor.sum

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        read.append(tensor.nbytes)
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "sum", counted)
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 4_000_000)
    read_gb_s(CPU)
    # One reading before, which also brings the pages in.
    assert read == [4_000_000] * (1 + bandwidth._ROUNDS)


def test_the_buffer_is_larger_than_any_cache() -> None:
    # The largest of server processors, 3D V-Cache, are 1.1 GB a socket; of machines
    # that rows run on for 2 cores, tens of MB.
    assert bandwidth._CPU_BYTES >= 256 * 2**20


@pytest.mark.parametrize(
    ("free", "taken"),
    [
        (80 * 2**30, 4 * 2**30),
        (7 * 2**30, 7 * 2**28),
        (3, bandwidth._LEAST_CUDA_BYTES),
        (0, bandwidth._LEAST_CUDA_BYTES),
    ],
)
def test_a_small_card_streams_what_it_has_room_for_and_never_nothing(
    monkeypatch: pytest.MonkeyPatch, free: int, taken: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, free))
    assert bandwidth._cuda_bytes(torch.device("cuda")) == taken
