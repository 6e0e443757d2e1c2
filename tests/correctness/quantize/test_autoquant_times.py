"""The times that autoquant takes, and the file that keeps them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama_perf.kernels.weight import Packed
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.autoquant import times_file, timing
from llama_perf.quantize.autoquant.products import Product
from llama_perf.quantize.autoquant.timing import time_product
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.schemes import AUTOQUANT
from tests.correctness.support.record_samples import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another beside other work cost more than a product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_key_tells_machines_versions_and_kernels_apart() -> None:
    key = times_file.machine_key(asdict(ENVIRONMENT))
    for change in (
        {"device_key": "other"},
        {"threads": 3},
        {"torch": "2.14"},
        {"torchao": "0.19"},
        {"triton": "9"},
        {"driver": "9"},
        {"float32_matmul_precision": "high"},
    ):
        assert times_file.machine_key(asdict(ENVIRONMENT) | change) != key
    assert times_file.machine_key(asdict(ENVIRONMENT) | {"commit": "other"}) == key
    product = Product(tokens=1, rows=2, columns=3)
    told = times_file.time_key("int8wo", product, dtype="float32", how="compiled")
    assert told == "int8wo 1x2x3 float32 compiled"


def test_the_default_file_lies_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAMA_PERF_CACHE", str(tmp_path))
    assert times_file.default_path() == tmp_path / "autoquant.json"
    monkeypatch.delenv("LLAMA_PERF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert times_file.default_path() == tmp_path / "llama-perf" / "autoquant.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = tmp_path / ".cache" / "llama-perf" / "autoquant.json"
    assert times_file.default_path() == ours


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(CPU, id="cpu"),
        pytest.param(torch.device("cuda"), id="cuda", marks=pytest.mark.cuda),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_the_clock_tells_large_products_from_small_ones(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")

    # On a card a product is a launch where its weight is small; the large one must take
    # five launches' time in four bits as well.
    sizes = (128, 2048) if device.type == "cpu" else (1024, 16384)

    def small_and_large() -> list[dict[str, float]]:
        return [
            time_product(
                Product(tokens=2, rows=size, columns=size),
                AUTOQUANT["autoquant-int4"],
                dtype=torch.float32,
                device=device,
                how="eager",
            )
            for size in sizes
        ]

    def told(small: dict[str, float], large: dict[str, float]) -> bool:
        assert small.keys() == large.keys() == set(AUTOQUANT["autoquant-int4"])
        # 256 times the work.
        return all(0 < us * 5 < large[name] for name, us in small.items())

    # A neighbour can hold up the small ones of one try, and not of every one.
    assert any(told(*small_and_large()) for _ in range(20))


@pytest.mark.parametrize("scheme", AUTOQUANT["autoquant-int4"])
def test_what_is_timed_is_what_a_model_would_hold(scheme: str) -> None:
    product = Product(tokens=1, rows=48, columns=128)
    timed = timing._copies(scheme, product, dtype=torch.float32, device=CPU)[0]
    linear = nn.Linear(128, 48, bias=False).requires_grad_(False)
    if scheme != "none":
        make_quantizer(scheme, kernels="native", device=CPU, dtype=torch.float32)(
            linear, "linear"
        )
    assert type(timed) in (type(linear.weight), type(linear.weight.data))
    if scheme == "none":
        return
    assert isinstance(linear.weight, PackedTensor)
    for name in linear.weight.tensor_data_names:
        ours, theirs = getattr(timed, name), getattr(linear.weight, name)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("compile", [True, False], ids=["compiled", "eager"])
def test_a_product_is_timed_as_the_engine_runs_it(
    compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Size] = []
    original = torch.compile

    def compiled(function: Callable[..., Tensor], **options: Any) -> Any:
        assert options == {"fullgraph": True, "dynamic": False}
        inner = original(function, **options)

        def called(x: Tensor, weight: Tensor) -> Tensor:
            calls.append(weight.shape)
            return inner(x, weight)

        return called

    monkeypatch.setattr(torch, "compile", compiled)
    found = time_product(
        Product(tokens=1, rows=48, columns=128),
        ["none", "int4wo-64"],
        dtype=torch.float32,
        device=CPU,
        how="compiled" if compile else "eager",
    )
    assert set(found) == {"none", "int4wo-64"}
    assert all(us > 0 for us in found.values())
    # What it is compiled to is test_products.py's.
    assert bool(calls) == compile
    # Nothing of it is counted as the row's own compilations.
    assert not torch._dynamo.utils.counters


@pytest.mark.parametrize("how", ["eager", "fused", "fused gate"])
def test_a_fused_rows_products_are_timed_on_its_kernels(
    how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llama_perf.kernels.triton import launch_fused

    calls: list[Packed] = []

    def project(
        x: Tensor, weight: Packed, counter: Tensor, *, peaks: launch_fused.Peaks
    ) -> Tensor:
        assert how == "fused"
        return called(x, weight, counter, peaks)

    def project_gated(
        x: Tensor,
        gate: Packed,
        up: Packed,
        counter: Tensor,
        *,
        peaks: launch_fused.Peaks,
    ) -> Tensor:
        assert how == "fused gate"
        assert up.layout == gate.layout
        return called(x, gate, counter, peaks)

    def called(
        x: Tensor, weight: Packed, counter: Tensor, peaks: launch_fused.Peaks
    ) -> Tensor:
        assert len(counter) >= 3
        # As in a step, where the kernel in front writes them.
        assert (peaks.read is not None) == weight.dynamic
        calls.append(weight)
        return x.new_zeros(len(x), weight.rows)

    monkeypatch.setattr(launch_fused, "project", project)
    monkeypatch.setattr(launch_fused, "project_gated", project_gated)
    if how != "eager":
        monkeypatch.setattr(timing, "multiply", None)
    candidates = list(AUTOQUANT["autoquant-int4"])
    found = time_product(
        Product(tokens=1, rows=48, columns=128),
        candidates,
        dtype=torch.float32,
        device=CPU,
        how=how,
    )
    assert set(found) == set(candidates)
    assert bool(calls) == (how != "eager")
    assert all((each.rows, each.columns) == (48, 128) for each in calls)


def test_the_kernels_of_a_fused_row_take_every_candidate() -> None:
    """Through Triton's own compiler for sm_90."""
    pytest.importorskip("triton", reason="Triton is not installed")
    program = "tests.correctness.support.autoquant_launches"
    done = subprocess.run(
        [sys.executable, "-m", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for how, weights in (("fused", 1), ("fused gate", 2)):
        assert found[how].keys() == set(AUTOQUANT["autoquant-int4"])
        for launches in found[how].values():
            # One launch of 16 rows a program, of one weight or of both.
            ((kernel, (programs, *_)),) = launches
            assert (kernel, programs) == ("project", weights * 11008 // 16)


def test_of_a_kernel_of_two_products_each_has_half_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(timing, "_cache_bytes", lambda _device: 1_000_000)
    product = Product(tokens=1, rows=128, columns=128)

    def run(how: Any) -> tuple[list[Any], int]:
        weights = timing._copies(
            "int8wo", product, dtype=torch.float32, device=CPU, how=how
        )
        done = timing._Pass(torch.zeros(1, 128), weights, lambda *_: torch.zeros(1))
        return weights, done.products

    alone, products = run("fused")
    assert len(alone) == products
    pairs, products = run("fused gate")
    assert 2 * len(pairs) == products >= len(alone) - 1
    # Each copy once: what a cache holds from the launch before is not read.
    assert len({id(each.codes) for pair in pairs for each in pair}) == products


def test_small_weights_are_copied_a_few_hundred_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each copy is a node of a graph: a cache of 50 MB would take thousands."""
    monkeypatch.setattr(timing, "_cache_bytes", lambda _device: 50 * 2**20)
    counts = {
        size: len(
            timing._copies(
                "none",
                Product(tokens=1, rows=size, columns=size),
                dtype=torch.float32,
                device=CPU,
            )
        )
        for size in (128, 2048)
    }
    # 64 KB and 16 MB: of the large ones as many as two caches cannot hold.
    assert counts == {128: 256, 2048: 8}
