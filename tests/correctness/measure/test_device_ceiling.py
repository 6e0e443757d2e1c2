"""What bounds a step on a device: read, copy, and from kernel to kernel."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from llama_perf.errors import SpecError
from llama_perf.measure import bandwidth, device_ceiling
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.results.measurement import Ceiling

CPU = torch.device("cpu")


def test_a_cpu_has_what_it_reads_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 4_000_000)
    found = measure_ceiling(CPU)
    assert found == Ceiling(read_gb_s=found.read_gb_s)
    assert found.bandwidth_gb_s == found.read_gb_s > 0


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

    def timed(replay: object) -> tuple[float, int]:
        """As if each kernel took 2 us behind 5 us of the whole; dependent ones 1."""
        launched.clear()
        replay()  # type: ignore[operator]
        each = 1e-6 if launched[-1]["DEPENDENT"] else 2e-6
        assert ("launch_pdl" in launched[-1]) == launched[-1]["DEPENDENT"]
        return 5e-6 + each * len(launched), 1

    monkeypatch.setattr(dependent_launch, "count", Kernel())
    monkeypatch.setattr(device_ceiling, "captured", Graph)
    monkeypatch.setattr(device_ceiling, "warm_up", lambda work: work())
    monkeypatch.setattr(device_ceiling, "best_cuda_seconds", timed)
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
        device_ceiling, "captured", lambda work: SimpleNamespace(replay=work)
    )
    monkeypatch.setattr(device_ceiling, "warm_up", lambda work: work())
    monkeypatch.setattr(device_ceiling, "best_cuda_seconds", lambda _replay: (1.0, 1))
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
    from llama_perf.kernels.triton.dependent_launch import count
    from scripts.studies.kernel_resources.resources import Kernel, compile_kernel

    for dependent in (False, True) if capability >= 90 else (False,):
        kernel = Kernel(
            function=count,
            pointers={"x": "*i32"},
            sizes={},
            constants={"DEPENDENT": dependent},
            warps=1,
            stages=1,
        )
        taken = compile_kernel(kernel, capability)
        assert taken.spilled_bytes == 0
        assert taken.registers < 32
