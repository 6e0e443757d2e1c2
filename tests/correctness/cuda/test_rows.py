"""Rows measured on the CPU and on a GPU, whose activations are as in `test_cuda.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.synthetic import SyntheticWeights
from llama_perf.llama.config import ModelConfig
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.request import RunOptions
from llama_perf.run.session import Session
from tests.correctness.cuda.test_cuda import MODELS, device, dtype_on, small_model
from tests.correctness.support.weights_samples import all_weights, write_json

__all__ = ["device"]  # A fixture.


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One for all rows, so that the bandwidth is measured once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in MODELS.items():
        write_checkpoint(folder / name, config)
    return Session([], options=RunOptions(checkpoints=folder))


def write_checkpoint(folder: Path, model: ModelConfig) -> None:
    reader = SyntheticWeights(model, dtype=torch.float32, device=torch.device("cpu"))
    folder.mkdir()
    torch.save(all_weights(reader), folder / "model.pth")
    write_json(folder / "config.json", to_hugging_face(model))


def small_row(device: torch.device, **fields: Any) -> RowSpec:
    dtype = str(dtype_on(device)).removeprefix("torch.")
    asked: dict[str, Any] = {"max_new_tokens": 8, "num_samples": 2, **fields}
    return RowSpec(model="small", device=device.type, dtype=dtype, **asked)


def measured(result: RowResult) -> Measurement:
    assert result.status is Status.MEASURED, result.reason
    assert result.measurement is not None
    return result.measurement


@pytest.mark.parametrize("scheme", ["int8wo", "int4wo-64", "float8wo"])
def test_a_torchao_row_is_measured(
    device: torch.device, session: Session, scheme: str
) -> None:
    on_card = device.type == "cuda"
    row = small_row(device, quantization=scheme, kernels="torchao", compile=on_card)
    model = "wide" if scheme == "int4wo-64" else "small"
    now = measured(session.run_row(replace(row, model=model)))
    assert 0 < now.model_size_bytes < small_model(device, model).weight_bytes()
    assert now.graph_breaks == (0 if on_card else None)


@pytest.mark.parametrize("scheme", [None, "int8wo", "int4wo-64"])
def test_a_compiled_row_of_the_published_set_is_measured(
    device: torch.device, session: Session, scheme: str | None
) -> None:
    on_card = device.type == "cuda"
    row = small_row(
        device,
        quantization=scheme,
        kernels="native" if scheme is None else "torchao",
        attention="sdpa",
        # torchao's int4 is not compiled on a CPU.
        compile=on_card or scheme != "int4wo-64",
        capture=on_card,
        kv_cache_quantization=scheme is None,
    )
    now = measured(session.run_row(row))
    assert now.check is not None
    assert now.graph_breaks in (0, None)


def test_a_compiled_int8dq_row_is_measured_or_says_why_not(
    device: torch.device,
    session: Session,
    record_property: Callable[[str, object], None],
) -> None:
    on_card = device.type == "cuda"
    row = small_row(device, quantization="int8dq", kernels="torchao", compile=on_card)
    result = session.run_row(row)
    record_property("int8dq", result.summary)
    if on_card and result.status is Status.INVALID:
        # pytorch/ao#2376: torch's int8 product takes more than 16 rows on CUDA, and
        # a decoding step has one.
        assert re.fullmatch(r"\w+(Error|Failed|Exception): .+", result.reason or "")
    else:
        measured(result)


def test_times_and_sizes_of_a_row_are_in_order(
    device: torch.device, session: Session
) -> None:
    row = small_row(device, num_samples=3)
    now = measured(session.run_row(row))
    assert len(now.sample_ns) == len(now.first_token_ns) == 3
    for total, first in zip(now.sample_ns, now.first_token_ns, strict=True):
        assert 0 < first < total
    assert 0 < now.tok_s < math.inf
    assert now.model_size_bytes == small_model(device).weight_bytes()
    assert now.peak_memory_bytes > 0
    if device.type == "cuda":
        assert now.peak_allocated_bytes is not None
        assert now.model_size_bytes < now.peak_allocated_bytes <= now.peak_memory_bytes


@contextmanager
def too_little_memory(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The allocator refuses, though the device says that there is memory."""
    if device.type == "cpu":
        with monkeypatch.context() as patched:
            patched.setattr("llama_perf.run.session.prepare", _out_of_memory)
            yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(64 * 2**20 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _out_of_memory(*_arguments: Any, **_options: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB.")


def test_after_a_row_that_ran_out_of_memory_the_next_one_runs(
    device: torch.device, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.ceiling(device)  # which needs memory of its own
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with too_little_memory(device, monkeypatch):
        # Its mask alone is 256 MiB, which the other path of attention does not have.
        large = small_row(device, cache_size=16384, attention="sdpa")
        result = session.run_row(large)
    assert result.status is Status.INVALID
    assert (result.reason or "").startswith("out of memory: CUDA out of memory")
    measured(session.run_row(small_row(device)))
    if device.type == "cuda":
        assert torch.cuda.memory_allocated() - before < 16 * 2**20
