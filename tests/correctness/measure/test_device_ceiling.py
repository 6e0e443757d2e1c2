"""Bounds of a decode step on a device: reading, copying, and kernel to kernel."""

from __future__ import annotations

import os
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_perf.devices import base, cpu
from llama_perf.devices.cuda import MIN_STREAM_BYTES, CudaDevice
from llama_perf.devices.device import device_of
from llama_perf.errors import SpecError
from llama_perf.measure import device_ceiling
from llama_perf.measure.device_ceiling import measure_ceiling, read_gb_s
from llama_perf.results.measurement import Ceiling

CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of 4 MB in three rounds."""
    monkeypatch.setattr(cpu, "STREAM_BYTES", 4_000_000)
    monkeypatch.setattr(device_ceiling, "_ROUNDS", 3)


def test_this_machines_bandwidth_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "STREAM_BYTES", 64 * 2**20)
    monkeypatch.setattr(device_ceiling, "_ROUNDS", 3)
    # A neighbour may take all but a little of it.
    assert 0 < read_gb_s(device_of("cpu")) < 2000


@pytest.mark.usefixtures("short")
def test_the_best_round_counts_and_the_first_reading_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock is read before and after each round; between rounds it moves on too.
    seconds = [0, 4, 9, 2, 9, 5]
    clock = accumulate(second * 10**9 for second in seconds)
    monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter_ns=clock.__next__))
    assert read_gb_s(device_of("cpu")) == pytest.approx(4e6 / 2.0 / 1e9)
    assert next(clock, None) is None, "a reading outside the rounds was timed"


@pytest.mark.usefixtures("short")
def test_all_of_the_buffer_is_read_in_every_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    original: Any = torch.Tensor.sum

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        total: torch.Tensor = original(tensor)
        return total

    monkeypatch.setattr(torch.Tensor, "sum", counted)
    read_gb_s(device_of("cpu"))
    # One reading before, which also brings the pages in.
    assert sizes == [4_000_000] * 4


def test_the_buffer_is_larger_than_any_cache() -> None:
    # The largest of server processors, 3D V-Cache, are 1.1 GB a socket; of machines
    # that rows run on for 2 cores, tens of MB.
    assert cpu.STREAM_BYTES >= 256 * 2**20


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (80 * 2**30, 4 * 2**30),
        (7 * 2**30, 7 * 2**28),
        (3, MIN_STREAM_BYTES),
        (0, MIN_STREAM_BYTES),
    ],
)
def test_a_small_gpu_streams_what_it_has_room_for_and_never_nothing(
    monkeypatch: pytest.MonkeyPatch, free: int, size: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, free))
    assert CudaDevice(torch.device("cuda")).stream_bytes() == size


@pytest.mark.usefixtures("short")
def test_a_cpu_has_what_it_reads_and_nothing_else() -> None:
    ceiling = measure_ceiling(CPU)
    assert ceiling == Ceiling(read_gb_s=ceiling.read_gb_s)
    assert ceiling.bandwidth_gb_s == ceiling.read_gb_s > 0


def test_the_better_of_reading_and_copying_is_the_bandwidth() -> None:
    both = Ceiling(read_gb_s=100.0, copy_gb_s=120.0)
    assert both.bandwidth_gb_s == 120.0
    assert Ceiling(read_gb_s=100.0, copy_gb_s=80.0).bandwidth_gb_s == 100.0
    assert both.summary == "100.0 GB/s read, 120.0 GB/s copied"
    whole = Ceiling(
        read_gb_s=1.0, copy_gb_s=2.0, launch_us=3.0, dependent_launch_us=0.5
    )
    assert whole.summary.endswith(
        "3.00 us from kernel to kernel, 0.50 us by dependent launch"
    )
    with pytest.raises(SpecError, match="read_gb_s"):
        Ceiling(read_gb_s=0.0)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_gap_is_what_each_further_kernel_takes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llama_perf.kernels.triton import dependent_launch

    launched: list[dict[str, object]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Kernel:
            assert grid == (1,)
            return self

        def __call__(self, x: torch.Tensor, **options: object) -> None:
            launched.append(options)
            x.add_(1)

    class Graph:
        def __init__(self, work: object) -> None:
            self.replay = work

    def timed(_device: object, replay: Any) -> tuple[float, int]:
        """As if each kernel took 2 us behind 5 us of the whole; dependent ones 1."""
        launched.clear()
        replay()
        each = 1e-6 if launched[-1]["DEPENDENT"] else 2e-6
        assert ("launch_pdl" in launched[-1]) == launched[-1]["DEPENDENT"]
        return 5e-6 + each * len(launched), 1

    monkeypatch.setattr(dependent_launch, "count", Kernel())
    monkeypatch.setattr(device_ceiling, "capture_graph", Graph)
    monkeypatch.setattr(device_ceiling, "warm_up", lambda work: work())
    monkeypatch.setattr(device_ceiling, "best_seconds", timed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    plain, dependent = device_ceiling.launch_us(CPU)
    assert plain == pytest.approx(2.0)
    if capability >= (9, 0):
        assert dependent == pytest.approx(1.0)
    else:
        assert dependent is None


def test_a_chain_that_lost_a_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llama_perf.kernels.triton import dependent_launch

    class Nothing:
        def __getitem__(self, _grid: object) -> Nothing:
            return self

        def __call__(self, *_x: object, **_options: object) -> None:
            pass

    monkeypatch.setattr(dependent_launch, "count", Nothing())
    monkeypatch.setattr(
        device_ceiling, "capture_graph", lambda work: SimpleNamespace(replay=work)
    )
    monkeypatch.setattr(device_ceiling, "warm_up", lambda work: work())
    monkeypatch.setattr(device_ceiling, "best_seconds", lambda *_work: (1.0, 1))
    with pytest.raises(AssertionError, match="did not run"):
        device_ceiling._gap_us(CPU, dependent=False)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_with_its_dependence_where_the_card_has_it(
    capability: int,
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llama_perf.kernels.triton.dependent_launch import launch_count
    from scripts.studies.kernel_resources.resources import compiled

    x = torch.empty(1, dtype=torch.int32, device="meta")
    for dependent in (False, True) if capability >= 90 else (False,):
        launch = partial(launch_count, x, dependent=dependent)
        (taken,) = compiled(launch, capability)
        assert taken.spilled_bytes == 0
        assert taken.registers < 32
