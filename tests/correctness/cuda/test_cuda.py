"""Each test's body runs on the CPU too, so that it is known to work before a card.

On a card the activations are bfloat16; on the CPU, whose bfloat16 products are slow,
float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.synthetic import SyntheticWeights
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY, Sampling
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.measure.environment import collect
from llama_perf.measure.memory import MemoryMeter
from llama_perf.quantize.model import quantize_model
from scripts.doc_tables.rounding import exact_int_mm
from tests.correctness.support.waiting import refusing_to_wait
from tests.correctness.support.weights_samples import all_weights

# Widths that every scheme's kernels take.
SMALL = ModelConfig(
    dim=256,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    intermediate_size=512,
    vocab_size=512,
    head_dim=64,
)
# torchao's int4 for CUDA pads a weight's columns to a multiple of 1024.
WIDE = replace(SMALL, dim=1024, n_heads=16, intermediate_size=1024)
MODELS = {"small": SMALL, "wide": WIDE}
PROMPT = torch.tensor([[11, 7, 400, 3, 92]])
# What bfloat16 leaves of logits near 4: half a unit in the last place is 2^-7, and
# two sums of them in another order differ by a few.
TIE = {torch.bfloat16: 0.08, torch.float32: 1e-4}
CLOSE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
# Relative error of the logits of SMALL, in which the errors of all layers add up:
# about one and a half times what each scheme shows on the CPU.
QUANTIZED = {"int8wo": 0.04, "int8dq": 0.06, "float8wo": 0.15, "int4wo-64": 0.45}


@pytest.fixture(
    params=[
        pytest.param("cpu", id="cpu"),
        pytest.param("cuda", id="cuda", marks=pytest.mark.cuda),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return available(request.param)


def available(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(name)


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def small_model(device: torch.device, model: str = "small") -> Transformer:
    dtype = dtype_on(device)
    reader = SyntheticWeights(MODELS[model], dtype=dtype, device=device)
    return build_model(reader, dtype=dtype, device=device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def greedy(model: Transformer, *, compile: bool, count: int) -> Tensor:
    engine = Engine(model, EngineOptions(cache_size=64, compile=compile))
    prompt = PROMPT.to(model.device)
    return engine.generate(prompt, max_new_tokens=count, sampling=GREEDY).cpu()


def test_the_key_and_the_environment_name_the_device(device: torch.device) -> None:
    environment = collect(device)
    assert environment.device_memory_bytes > 2**30
    assert environment.torch == torch.__version__
    if device.type == "cpu":
        assert re.fullmatch(r"cpu-[a-z0-9.-]+-\d+c", environment.device_key)
        assert environment.driver is None
        return
    assert re.fullmatch(r"[a-z0-9.-]+-\d+sm-\d+gib", environment.device_key)
    assert environment.device_name == torch.cuda.get_device_name(device)
    assert environment.cuda == torch.version.cuda
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", environment.driver or "none told")


def datasheet_gb_s(device: torch.device) -> float | None:
    """Twice the memory clock times the bus width, where torch gives them."""
    if device.type == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    clock_khz = getattr(properties, "memory_clock_rate", 0)
    bits = getattr(properties, "memory_bus_width", 0)
    return 2 * clock_khz * 1e3 * bits / 8 / 1e9 or None


def test_measured_bandwidth_is_plausible(device: torch.device) -> None:
    ceiling, datasheet = measure_ceiling(device), datasheet_gb_s(device)
    actual = ceiling.bandwidth_gb_s
    assert math.isfinite(actual)
    assert actual > 0
    if device.type == "cuda":
        assert ceiling.copy_gb_s is not None
        assert 0.1 < (ceiling.launch_us or 0) < 20
    if datasheet is not None:
        assert 0.3 < actual / datasheet < 1.05, f"{actual:.0f} of {datasheet:.0f} GB/s"


def test_compiled_greedy_tokens_are_the_eager_ones(device: torch.device) -> None:
    model = small_model(device)
    with compiler_settings():
        compiled = greedy(model, compile=True, count=24)
    eager = greedy(model, compile=False, count=24)
    differs = (eager != compiled).nonzero()
    if len(differs):
        place = int(differs[0, 1])
        logits = model.logits(eager[:, :place])[0, -1]
        chosen = logits[torch.stack((eager[0, place], compiled[0, place]))]
        gap = (chosen[0] - chosen[1]).abs().item()
        assert gap < TIE[model.dtype], f"token {place} differs, {gap} apart"


def test_cached_decode_gives_the_logits_of_the_whole_text(
    device: torch.device,
) -> None:
    model = small_model(device)
    seeded = torch.Generator().manual_seed(1)
    tokens = torch.randint(SMALL.vocab_size, (2, 20), generator=seeded).to(device)
    full_pass = model.logits(tokens)
    engine = Engine(model, EngineOptions(batch_size=2, cache_size=32))
    steps = [engine.prefill(tokens[:, :5])]
    for index in range(5, 20):
        position = torch.tensor([index], device=device)
        steps.append(engine.decode(tokens[:, index : index + 1], position))
    cached = torch.stack(steps, dim=1).float()
    assert relative_error(cached, full_pass[:, 4:]) < CLOSE[model.dtype]


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
    error = relative_error(quantized, unquantized)
    assert 0 < error < QUANTIZED[scheme], error


def test_two_builds_have_the_same_synthetic_weights(device: torch.device) -> None:
    first, second = (
        all_weights(SyntheticWeights(SMALL, dtype=dtype_on(device), device=device))
        for _ in range(2)
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.device.type == device.type
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_decoding_never_waits_for_the_device(
    device: torch.device, temperature: float
) -> None:
    engine = Engine(small_model(device), EngineOptions(cache_size=32))
    prompt = PROMPT.to(device)
    generator = torch.Generator(device=device)

    def run() -> list[Tensor]:
        return list(
            engine.stream(
                prompt,
                max_new_tokens=6,
                sampling=Sampling(temperature=temperature, generator=generator),
            )
        )

    run()  # makes what is made once
    with refusing_to_wait(device):
        tokens = run()
    assert len(tokens) == 6


@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.nonzero])
def test_what_waits_is_noticed(
    device: torch.device, wait: Callable[[Tensor], object]
) -> None:
    number = torch.ones(1, device=device)
    with (
        refusing_to_wait(device),
        pytest.raises((AssertionError, RuntimeError), match=r"wait|synchroniz"),
    ):
        wait(number)


def test_a_peak_counts_what_was_given_back(device: torch.device) -> None:
    meter = MemoryMeter(device)
    before = meter.peak_bytes()
    block = torch.ones(64 * 2**20, dtype=torch.uint8, device=device)
    assert int(block.max()) == 1
    del block
    growth = meter.peak_bytes() - before
    assert 60 * 2**20 < growth < 128 * 2**20
    meter.retained_bytes()  # gives it back
    meter.reset_peak()
    assert meter.peak_bytes() - before < 16 * 2**20
