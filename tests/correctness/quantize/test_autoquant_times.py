"""The times that autoquant takes, and the file that keeps them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call, create_autospec

import pytest
import torch
from torch import Tensor

from llama_perf import files
from llama_perf.devices.base import Device
from llama_perf.llama.layers import product as multiply
from llama_perf.quantize.autoquant import choose, timing
from llama_perf.quantize.autoquant.timing import Product
from llama_perf.rows.schemes import AUTOQUANT
from tests.correctness.quantize.test_native_schemes import quantized
from tests.correctness.support import launches
from tests.correctness.support.cpp_operators import torch_threads
from tests.correctness.support.record_samples import ENVIRONMENT

CPU = torch.device("cpu")
CANDIDATES = AUTOQUANT["autoquant-int4"]
HOWS = ("eager", "compiled", "fused", "fused gate")


def product(rows: int, columns: int, tokens: int = 1, how: Any = "eager") -> Product:
    return Product(tokens=tokens, rows=rows, columns=columns, how=how)


def timed(
    timed: Product, candidates: Sequence[str] = CANDIDATES, device: torch.device = CPU
) -> dict[str, float]:
    times = timing.time_product(timed, candidates, device)
    assert times.keys() == set(candidates)
    assert all(us > 0 for us in times.values())
    return times


def copies(
    name: str, rows: int, columns: int, how: str = "eager"
) -> list[tuple[Any, ...]]:
    return timing.weight_copies(name, product(rows, columns, how=how), CPU)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another beside other work cost more than a product."""
    with torch_threads(1):
        yield


def test_a_key_tells_machines_versions_and_kernels_apart() -> None:
    fields = asdict(ENVIRONMENT)
    key = choose.machine_key(fields)
    names = ("device_key", "threads", "torch", "torchao", "triton", "driver")
    for name in (*names, "float32_matmul_precision", "cpu_features"):
        assert choose.machine_key(fields | {name: "other"}) != key
    assert choose.machine_key(fields | {"commit": "other"}) == key
    key = choose.time_key("fp6", product(2, 3, how="compiled"))
    assert key == "fp6 1x2x3 float32 compiled"


def test_the_default_file_lies_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLAMA_PERF_CACHE")
    assert choose.times_path() == files.CHECKOUT / ".llama-perf" / "autoquant.json"
    monkeypatch.setattr(files, "is_checkout", lambda: False)
    for variable, folder in (
        ("LLAMA_PERF_CACHE", ""),
        ("XDG_CACHE_HOME", "llama-perf"),
        ("HOME", ".cache/llama-perf"),
    ):
        monkeypatch.setenv(variable, str(tmp_path))
        assert choose.times_path() == tmp_path / folder / "autoquant.json"
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("one_thread")
def test_the_clock_tells_large_products_from_small_ones(device: torch.device) -> None:
    # On a card a product is a launch where its weight is small; the large one must
    # take five launches' time in four bits as well.
    sizes = (128, 2048) if device.type == "cpu" else (1024, 16384)

    def small_is_faster() -> bool:
        small, large = (
            timed(product(size, size, tokens=2), device=device) for size in sizes
        )
        # 256 times the work.
        return all(us * 5 < large[name] for name, us in small.items())

    # A neighbour can hold up the small ones of one try, and not of every one.
    assert any(small_is_faster() for _ in range(20))


@pytest.mark.parametrize("scheme", CANDIDATES)
def test_what_is_timed_is_what_a_model_would_hold(scheme: str) -> None:
    ((copy,), *_) = copies(scheme, 48, 128)
    if scheme == "none":
        assert type(copy) is Tensor
        return
    weight = quantized(scheme, torch.randn(48, 128)).weight
    assert type(copy) is type(weight.data)
    for name in weight.tensor_data_names:
        ours, theirs = getattr(copy, name), getattr(weight, name)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("how", HOWS)
def test_a_product_is_timed_as_the_engine_runs_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: set[str] = set()
    flags: Any = {"fullgraph": True, "dynamic": False}
    compiled = Mock(wraps=torch.compile(multiply, **flags))
    compile = create_autospec(torch.compile, return_value=compiled)

    def launch(x: Tensor, weights: Any, counter: Tensor, *, peaks: Any) -> Tensor:
        assert len(counter) >= 3
        assert len({weight.kind for weight in weights}) == 1
        assert len(weights) == 1 + (how == "fused gate")
        # As in a step, where the kernel in front writes them.
        assert (peaks.read is not None) == weights[0].on_tensor_cores(x.dtype)
        assert (weights[0].rows, weights[0].columns) == (48, 128)
        calls.add(how)
        return x.new_zeros(len(x), 48)

    monkeypatch.setattr(torch, "compile", compile)
    candidates: Sequence[str] = CANDIDATES
    if how.startswith("fused"):
        pytest.importorskip("triton", reason="Triton is not installed")
        from llama_perf.kernels.triton import launch_fused

        monkeypatch.setattr(launch_fused, "project", launch)
        monkeypatch.setattr(timing, "multiply", None)
    elif how == "compiled":
        candidates = ("none", "int4wo-64")
    timed(product(48, 128, how=how), candidates)
    assert calls == {how} & {"fused", "fused gate"}
    # What it is compiled to is test_products.py's.
    assert compiled.called == (how == "compiled")
    assert all(made == call(multiply, **flags) for made in compile.call_args_list)
    # Nothing of it is counted as the row's own compilations.
    assert not torch._dynamo.utils.counters


def test_the_kernels_of_a_fused_row_take_every_candidate() -> None:
    """Through Triton's own compiler for sm_90."""
    pytest.importorskip("triton", reason="Triton is not installed")
    launched = launches.in_a_process(launches.timed_by_autoquant)
    for how, weights in (("fused", 1), ("fused gate", 2)):
        assert launched[how].keys() == set(CANDIDATES)
        for candidate, (launch,) in launched[how].items():
            # Programs of 16 rows, or of 32 on tensor cores, of one weight or of both.
            assert launch.kernel == "project"
            rows = 16 if candidate == "none" else 32
            assert launch.grid[0] == weights * 11008 // rows


def test_of_a_kernel_of_two_products_each_has_half_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(timing, "_cache_bytes", lambda _device: 1_000_000)
    singles = copies("int8wo", 128, 128, how="fused")
    pairs = copies("int8wo", 128, 128, how="fused gate")
    assert {len(weights) for weights in singles} == {1}
    assert {len(weights) for weights in pairs} == {2}
    assert 2 * len(pairs) >= len(singles) - 1
    # Each copy once: what a cache holds from the launch before is not read.
    assert len({id(copy.codes) for pair in pairs for copy in pair}) == 2 * len(pairs)
    # A clock on which each launch takes a microsecond.
    launched: list[Any] = []
    monkeypatch.setattr(Device, "mark", lambda _self: 1000 * len(launched))
    passes = {
        name: timing._Pass(torch.zeros(1), weights, lambda *it: launched.append(it))
        for name, weights in (("fused", singles), ("fused gate", pairs))
    }
    assert timing._us(passes, CPU) == {"fused": 1.0, "fused gate": 0.5}


def test_small_weights_are_copied_a_few_hundred_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each copy is a node of a graph: a cache of 50 MB would take thousands."""
    monkeypatch.setattr(timing, "_cache_bytes", lambda _device: 50 * 2**20)
    # 64 KB and 16 MB: of the large ones as many as two caches cannot hold.
    assert len(copies("none", 128, 128)) == 256
    assert len(copies("none", 2048, 2048)) == 8
