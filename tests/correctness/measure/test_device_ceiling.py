"""Bounds of a decode step on a device, and what has to be there to compile kernels."""

import os
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.devices import base, cpu
from llama_perf.devices.cuda import CudaDevice
from llama_perf.devices.device import device_of
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.measure import device_ceiling, environment
from llama_perf.measure.device_ceiling import measure_ceiling, stream_gb_s
from llama_perf.measure.environment import build_problem, compiler_problem
from llama_perf.measure.prepare import check_runnable
from llama_perf.results.measurement import Ceiling
from llama_perf.rows.spec import RowSpec

CPU = torch.device("cpu")
MIN = 16 << 20
EAGER = RowSpec(model="stories15M", attention="sdpa")
NO_C = "Triton needs a C compiler, and none is installed (package gcc)"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of 4 MB in three rounds."""
    monkeypatch.setattr(cpu, "STREAM_BYTES", 4_000_000)
    monkeypatch.setattr(device_ceiling, "_ROUNDS", 3)


@pytest.mark.usefixtures("short")
def test_the_best_round_counts_and_the_first_reading_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock is read before and after each round; between rounds it moves on too.
    clock = accumulate(second * 10**9 for second in (0, 4, 9, 2, 9, 5))
    monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter_ns=clock.__next__))
    sizes: list[int] = []
    monkeypatch.setattr(torch.Tensor, "sum", lambda tensor: sizes.append(tensor.nbytes))
    assert stream_gb_s(device_of("cpu")) == pytest.approx(4e6 / 2.0 / 1e9)
    assert next(clock, None) is None, "a reading outside the rounds was timed"
    # All of the buffer is read, once before, which also brings the pages in.
    assert sizes == [4_000_000] * 4


def test_a_buffer_is_larger_than_any_cache_and_fits_a_small_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The largest of server processors, 3D V-Cache, are 1.1 GB a socket; of machines
    # that rows run on for 2 cores, tens of MB.
    assert cpu.STREAM_BYTES >= 256 * 2**20
    for free, size in ((80 << 30, 4 << 30), (7 << 30, 7 << 28), (3, MIN), (0, MIN)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", Mock(return_value=(free,)))
        assert CudaDevice(torch.device("cuda")).stream_bytes() == size


@pytest.mark.usefixtures("short")
def test_a_cpu_has_what_it_reads_and_nothing_else() -> None:
    ceiling = measure_ceiling(CPU)
    assert ceiling == Ceiling(read_gb_s=ceiling.read_gb_s)
    # A neighbour may take all but a little of it.
    assert 0 < ceiling.bandwidth_gb_s == ceiling.read_gb_s < 2000


def test_the_better_of_reading_and_copying_is_the_bandwidth() -> None:
    both = Ceiling(read_gb_s=100.0, copy_gb_s=120.0)
    assert both.bandwidth_gb_s == 120.0
    assert Ceiling(read_gb_s=100.0, copy_gb_s=80.0).bandwidth_gb_s == 100.0
    assert both.summary == "100.0 GB/s read, 120.0 GB/s copied"
    launches = replace(both, launch_us=3.0, dependent_launch_us=0.5)
    gaps = "3.00 us from kernel to kernel, 0.50 us by dependent launch"
    assert launches.summary.endswith(gaps)
    with pytest.raises(SpecError, match="read_gb_s"):
        Ceiling(read_gb_s=0.0)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_gap_is_what_each_further_kernel_takes_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    launched: list[dict[str, bool]] = []

    def launch(x: torch.Tensor, **options: bool) -> None:
        launched.append(options)
        x.add_(1)

    def timed(_device: object, replay: Any) -> tuple[float, int]:
        """As if each kernel took 2 us behind 5 us of the whole; dependent ones 1."""
        launched.clear()
        replay()
        kernel_s = 1e-6 if launched[-1]["DEPENDENT"] else 2e-6
        assert ("launch_pdl" in launched[-1]) == launched[-1]["DEPENDENT"]
        return 5e-6 + kernel_s * len(launched), 1

    graph = "llama_perf.kernels.triton.launch.count"
    monkeypatch.setattr(graph, {(1,): launch})
    for name in ("capture_graph", "warm_up"):
        monkeypatch.setattr(device_ceiling, name, lambda x: SimpleNamespace(replay=x))
    monkeypatch.setattr(device_ceiling, "best_seconds", timed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    launch_us, dependent_us = device_ceiling.launch_us(CPU)
    assert launch_us == pytest.approx(2.0)
    assert dependent_us == (pytest.approx(1.0) if capability >= (9, 0) else None)
    monkeypatch.setattr(device_ceiling, "best_seconds", lambda *_work: (1.0, 1))
    with pytest.raises(AssertionError, match="did not run"):
        device_ceiling.launch_us(CPU)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_with_its_dependence_if_any(capability: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llama_perf.kernels.triton.launch import launch_count
    from scripts.studies.compile_only import compiled

    x = torch.empty(1, dtype=torch.int32, device="meta")
    for dependent in (False, True) if capability >= 90 else (False,):
        launch = partial(launch_count, x, dependent=dependent)
        (taken,) = compiled(launch, capability)
        assert taken.spilled_bytes == 0
        assert taken.registers < 32


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The commands of a machine that has Triton and Python's headers, and no other."""
    commands: set[str] = set()
    monkeypatch.setattr(shutil, "which", lambda name: name in commands or None)
    monkeypatch.setattr(environment, "package_version", lambda _: "1.0")
    monkeypatch.setattr(environment, "_include_folder", lambda: tmp_path)
    (tmp_path / "Python.h").touch()
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    return commands


def test_what_is_missing_is_told(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def problems(*more: str) -> tuple[str | None, ...]:
        installed.update(more)
        return tuple(map(compiler_problem, ("cpu", "cuda")))

    no_cpp = (
        "torch.compile needs a C++ compiler, and g++ is not installed (package g++, on"
        " Fedora gcc-c++)"
    )
    # Inductor takes no other name, nor does Triton.
    assert problems()[0] == problems("clang++")[0] == no_cpp
    assert problems("cc")[1] == NO_C
    assert problems("gcc", "g++") == (None, None)
    monkeypatch.setenv("CXX", "icpx")
    monkeypatch.setenv("CC", "icx")
    assert problems() == (
        no_cpp.replace("g++ is not installed", "CXX=icpx is not there"),
        "Triton needs a C compiler, and CC=icx is not there (package gcc)",
    )
    assert problems("icpx", "icx") == (None, None)
    header = tmp_path / "Python.h"
    header.unlink()
    problem = (
        f"Triton needs {header}, which is not there (package python3-dev, on Fedora"
        " python3-devel)"
    )
    assert problems() == (None, problem)
    monkeypatch.setattr("llama_perf.measure.prepare.check_device", torch.device)
    with pytest.raises(NotRunnable, match=re.escape(problem)):
        check_runnable(replace(EAGER, attention="decode", fused=True))
    monkeypatch.setattr(environment, "package_version", lambda _: None)
    assert problems() == (None, "Triton is not installed (pip install triton)")


def test_the_folder_is_the_one_that_triton_compiles_with() -> None:
    assert (environment._include_folder() / "Python.h").is_file()


@pytest.mark.usefixtures("installed")
def test_every_row_that_runs_on_triton_asks_and_no_other() -> None:
    for change in (
        {"attention": "decode"},
        {"attention": "decode", "fused": True},
        {"quantization": "int8wo"},
        {"quantization": "int8wo", "kernels": "torchao", "compile": True},
        {"compile": True},
    ):
        assert build_problem(replace(EAGER, **change)) == NO_C, change
    assert build_problem(EAGER) is None
    torchao = replace(EAGER, quantization="int8wo", kernels="torchao")
    assert build_problem(torchao) is None
    cpu = replace(EAGER, device="cpu", attention="decode", quantization="int8wo")
    assert build_problem(cpu) is None


def test_the_ceiling_leaves_launches_out_where_none_can_be_compiled(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_ceiling, "stream_gb_s", lambda *_, **__: 100.0)
    monkeypatch.setattr(device_ceiling, "launch_us", lambda _device: (3.0, 0.5))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    ceiling = measure_ceiling(torch.device("cuda"))
    assert ceiling == Ceiling(read_gb_s=100.0, copy_gb_s=100.0)
    installed.add("gcc")
    ceiling = measure_ceiling(torch.device("cuda"))
    assert (ceiling.launch_us, ceiling.dependent_launch_us) == (3.0, 0.5)
