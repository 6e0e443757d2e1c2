"""Each test's body runs on the CPU too, so that it is known to work before a card.

On a card the activations are bfloat16; on the CPU, whose bfloat16 products are slow,
float32.
"""

import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from llama_perf import save_model
from llama_perf.devices.device import device_of
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.measure.timing import RowMemoryMeter
from llama_perf.quantize.apply import quantize_model
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from scripts.doc_tables.figures import exact_int_mm
from tests.correctness.support import engines
from tests.correctness.support.engines import SMALL, dtype_on, small_model

CLOSE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
# Relative error of the logits of SMALL, in which the errors of all layers add up:
# about one and a half times what each scheme shows on the CPU.
QUANTIZED = {"int8wo": 0.04, "int8dq": 0.06, "float8wo": 0.15, "int4wo-64": 0.45}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One for all rows, so that the bandwidth is measured once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in engines.MODELS:
        save_model(small_model(torch.device("cpu"), name), folder / name)
    return Session([], options=RunRequest(checkpoints=folder))


def small_row(device: torch.device, **fields: Any) -> RowSpec:
    dtype = str(dtype_on(device)).removeprefix("torch.")
    wanted = {"model": "small", "max_new_tokens": 8, "num_samples": 2, **fields}
    return RowSpec(device=device.type, dtype=dtype, **wanted)


def measured(result: RowResult) -> Measurement:
    """Of a row that was: its times and sizes are in order."""
    assert result.status is Status.MEASURED, result.reason
    now = result.measurement
    assert now is not None
    assert len(now.sample_ns) == result.row.num_samples
    assert now.token_ns is not None
    samples = zip(now.sample_ns, now.first_token_ns, now.token_ns, strict=True)
    for total, first, others in samples:
        assert 0 < first < total
        assert len(others) == result.row.max_new_tokens - 1
        assert min(others) > 0
        # The times of events have seven digits.
        assert first + sum(others) <= total * (1 + 1e-6)
    assert now.memory is not None
    assert now.memory.weights_bytes >= now.model_size_bytes
    assert 0 < now.tok_s < math.inf
    if result.row.device == "cuda":
        assert now.peak_allocated_bytes is not None
        fixed = now.memory.weights_bytes + now.memory.cache_bytes
        assert fixed < now.peak_allocated_bytes <= now.peak_memory_bytes
    return now


def test_measured_bandwidth_is_plausible(device: torch.device) -> None:
    ceiling = measure_ceiling(device)
    assert 0 < ceiling.bandwidth_gb_s < math.inf
    if device.type == "cuda":
        assert ceiling.copy_gb_s is not None
        assert 0.1 < (ceiling.launch_us or 0) < 20
        # Twice the memory clock times the bus width, where torch gives them.
        properties = torch.cuda.get_device_properties(device)
        clock_khz = getattr(properties, "memory_clock_rate", 0)
        bits = getattr(properties, "memory_bus_width", 0)
        if peak := 2 * clock_khz * 1e3 * bits / 8 / 1e9:
            assert 0.3 < ceiling.bandwidth_gb_s / peak < 1.05, f"of {peak:.0f} GB/s"


def test_cached_decode_gives_the_logits_of_the_whole_text(device: torch.device) -> None:
    model = small_model(device)
    seeded = torch.Generator().manual_seed(1)
    tokens = torch.randint(SMALL.vocab_size, (2, 20), generator=seeded).to(device)
    uncached = model.logits(tokens)
    one = engines.engine(model, batch_size=2, cache_size=32)
    cached = engines.logits_after(one, tokens, 5, 15)
    assert engines.distance(cached, uncached[:, 4:]) < CLOSE[model.dtype]


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_quantized_logits_stay_close(
    device: torch.device, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(torch, "_int_mm", exact_int_mm)
    model = small_model(device)
    seeded = torch.Generator().manual_seed(2)
    # Over 16 positions, below which torch's int8 product refuses on CUDA.
    tokens = torch.randint(SMALL.vocab_size, (1, 32), generator=seeded)
    unquantized = model.logits(tokens)
    quantized = quantize_model(model, scheme, kernels="torchao").logits(tokens)
    error = engines.distance(quantized, unquantized)
    assert 0 < error < QUANTIZED[scheme], error


@pytest.mark.parametrize(
    ("scheme", "attention"),
    [
        *((scheme, "decode") for scheme in ("int8wo", "int4wo-64", "float8wo")),
        *((scheme, "sdpa") for scheme in (None, "int8wo", "int4wo-64")),
    ],
)
def test_a_row_is_measured(
    device: torch.device, session: Session, scheme: str | None, attention: str
) -> None:
    """Those on `sdpa` are of the published set."""
    on_card, published = device.type == "cuda", attention == "sdpa"
    int4 = scheme == "int4wo-64"
    row = small_row(
        device,
        model="wide" if int4 and not published else "small",
        quantization=scheme,
        kernels="native" if scheme is None else "torchao",
        attention=attention,
        # torchao's int4 is not compiled on a CPU.
        compile=on_card or (published and not int4),
        capture=on_card and published,
        kv_cache_quantization=scheme is None,
    )
    now = measured(session.run_row(row))
    assert now.graph_breaks == (0 if row.compile else None)
    assert now.check is not None
    unquantized_bytes = small_model(device, row.model).weight_bytes()
    if scheme is None:
        assert now.model_size_bytes == unquantized_bytes
        assert now.peak_memory_bytes > 0
    elif not published:
        assert 0 < now.model_size_bytes < unquantized_bytes


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


@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.nonzero])
def test_what_waits_is_noticed(
    device: torch.device, wait: Callable[[Tensor], object]
) -> None:
    number = torch.ones(1, device=device)
    with (
        engines.refusing_to_wait(device),
        pytest.raises((AssertionError, RuntimeError), match=r"wait|synchroniz"),
    ):
        wait(number)


def test_a_peak_counts_what_was_given_back(device: torch.device) -> None:
    meter = RowMemoryMeter(device)
    before = meter.peak_bytes()
    block = torch.ones(64 * 2**20, dtype=torch.uint8, device=device)
    assert int(block.max()) == 1
    del block
    growth = meter.peak_bytes() - before
    assert 60 * 2**20 < growth < 128 * 2**20
    meter.retained_bytes()  # gives it back
    device_of(device).reset_peak()
    assert meter.peak_bytes() - before < 16 * 2**20


def test_after_a_row_that_ran_out_of_memory_the_next_one_runs(
    device: torch.device, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator refuses, though the device says that there is memory."""
    session.ceiling(device)  # which needs memory of its own
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with monkeypatch.context() as patch, ExitStack() as undo:
        if device.type == "cpu":
            message = "CUDA out of memory. Tried to allocate 96.00 MiB."
            refuse = Mock(side_effect=torch.OutOfMemoryError(message))
            patch.setattr("llama_perf.run.session.prepare_row", refuse)
        else:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(64 * 2**20 / total)
            undo.callback(torch.cuda.set_per_process_memory_fraction, 1.0)
        # Its mask alone is 256 MiB, which the other path of attention does not have.
        large = small_row(device, cache_size=16384, attention="sdpa")
        result = session.run_row(large)
    assert result.status is Status.INVALID
    assert (result.reason or "").startswith("out of memory: CUDA out of memory")
    measured(session.run_row(small_row(device)))
    if device.type == "cuda":
        assert torch.cuda.memory_allocated() - before < 16 * 2**20
