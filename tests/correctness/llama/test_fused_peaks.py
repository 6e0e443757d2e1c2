"""Peaks of activations that one fused kernel writes and the next one reads: int8dq's.

Interpreted on a CPU, for real on a GPU, as in `test_fused.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.kernels import int8_dynamic
from llama_perf.llama.engine import Engine
from llama_perf.llama.linear import Linear
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY
from llama_perf.llama.transformer import Transformer
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.int8dq import Int8DynamicWeight
from tests.correctness.llama.test_fused import SMALL, TURNED, both, check
from tests.correctness.support.interpreter import device, test_in_the_interpreter
from tests.correctness.support.weights_samples import tiny_weights

__all__ = ["device", "test_in_the_interpreter"]


def two_layers(dtype: torch.dtype, device: torch.device) -> Transformer:
    weights = tiny_weights(replace(SMALL, n_layers=2))
    return build_model(weights, dtype=dtype, device=device)


@pytest.mark.parametrize("norm", [True, False], ids=["normed", "plain"])
def test_a_peak_that_was_left_is_the_one_that_would_be_found(
    norm: bool, device: torch.device
) -> None:
    """To the last bit, by kernels that take one, leave one and clear another."""
    from llama_perf.kernels.triton.launch_fused import (
        Norm,
        Peaks,
        project,
        project_gated,
    )
    from llama_perf.llama.fused import packed

    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(4, 20, 32, generator=generator)
    layer = nn.Sequential(Linear(20, 32))
    layer[0].weight = nn.Parameter(drawn[0].T.contiguous(), requires_grad=False)
    layer.to(device)
    quantize = make_quantizer(
        "int8dq", kernels="native", device=device, dtype=torch.float32
    )
    quantize(layer, "layer")
    weight = packed(layer[0].weight, "weight")
    x, residual = drawn[1, :3, :20].to(device), drawn[2, :3].to(device)
    next_norm_weight = drawn[3, 0].abs().to(device)
    counter = torch.zeros(2, dtype=torch.int32, device=device)
    own = drawn[3, 1, :20].abs().to(device) if norm else None
    size = x.abs() if own is None else (x * own).abs()
    peak = torch.zeros(8, dtype=torch.int32, device=device)
    peak[:3] = size.amax(1).view(torch.int32)
    normed = None if own is None else Norm(weight=own, eps=1e-5)
    expected = project(x, weight, counter, residual=residual.clone(), norm=normed)
    written = torch.zeros_like(peak)
    cleared = torch.full_like(peak, 7)
    actual = project(
        x,
        weight,
        counter,
        residual=residual.clone(),
        norm=normed,
        peaks=Peaks(
            read=peak,
            written=written,
            cleared=cleared,
            next_norm_weight=next_norm_weight,
        ),
    )
    assert torch.equal(actual, expected)
    assert torch.equal(
        written.view(torch.float32)[:3], (expected * next_norm_weight).abs().amax(1)
    )
    assert not written[3:].any()
    assert not cleared.any()
    written.zero_()
    peaks = Peaks(written=written)
    gated = project_gated(x, weight, weight, counter, norm=normed, peaks=peaks)
    assert torch.equal(written.view(torch.float32)[:3], gated.abs().amax(1))


def test_peaks_are_left_for_all_products_behind_another(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step all; of a prompt those of attention, and the head, find their own."""
    from llama_perf.kernels.triton import launch, launch_fused

    model = two_layers(torch.float32, device)
    quantized = quantize_model(model, "int8dq", kernels="native")
    modules, fused = both(quantized)
    peaked: list[bool] = []
    run = launch.run

    def spied(*arguments: Any, **more: Any) -> None:
        peaked.append(more["READS_PEAKS"])
        run(*arguments, **more)

    monkeypatch.setattr(launch_fused, "run", spied)
    check(modules, fused, torch.tensor([[3, 1]], device=device), TURNED)
    prompt = [True, False, True, True] * 2 + [False]
    assert peaked == prompt + [True] * len(prompt)


def test_steps_with_peaks_that_were_left_are_those_that_find_their_own(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, step after step: none sees what another one left."""
    from llama_perf.llama import fused as fused_step

    model = two_layers(torch.float16, device)
    model = quantize_model(model, "int8dq", kernels="native")
    prompt = torch.tensor([[3, 1], [7, 8]], device=device)

    def logits() -> Tensor:
        engine = Engine(model, EngineOptions(cache_size=24, batch_size=2, fused=True))
        _, actual = engine.observe(
            prompt, max_new_tokens=4, observed=4, sampling=GREEDY
        )
        return actual

    actual = logits()

    def without_reading(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any, **more: Any) -> Tensor:
            if "peaks" in more:
                more["peaks"] = replace(more["peaks"], read=None)
            else:
                more["peaks_in"] = None
            return run(*arguments, **more)

        return call

    for name in ("project", "project_gated", "project_heads"):
        run = getattr(fused_step, name)
        monkeypatch.setattr(fused_step, name, without_reading(run))
    assert torch.equal(actual, logits())


@pytest.mark.parametrize("preferred", [True, False], ids=["rows", "words"])
def test_a_weight_is_laid_out_for_the_kernels_whatever_the_cpu_prefers(
    preferred: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_perf.llama.fused import packed

    monkeypatch.setattr(int8_dynamic, "has_fast_int8_products", lambda: preferred)
    layer = nn.Sequential(Linear(32, 20))
    quantize = make_quantizer(
        "int8dq", kernels="native", device=device, dtype=torch.float32
    )
    quantize(layer, "layer")
    weight: Any = layer[0].weight
    if device.type == "cpu":
        assert (weight.codes.dtype == torch.int8) == preferred
    actual = packed(weight, "weight")
    assert actual.codes.dtype == torch.int32
    restored = Int8DynamicWeight(actual.codes, weight.scale, 20, 32, torch.float32)
    assert torch.equal(restored.dequantize(), weight.dequantize())
