"""The fused kernels against the modules: interpreted on a CPU, for real on a card.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process
of its own: `test_in_the_interpreter` runs this file there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.errors import NotRunnable, SpecError, ValuesError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.linear import Linear
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.prepare import Prepared
from llama_perf.measure.value_check import OPERATORS, check_values, warm_up
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.interpreter import device, test_in_the_interpreter
from tests.correctness.support.weights_samples import tiny_weights

__all__ = ["device", "test_in_the_interpreter"]
# Rows that fill no block of sixteen, columns that fill no step; as few programs as
# have all of a layer's parts, since the interpreter takes 50 ms for each.
SMALL = ModelConfig(
    dim=32,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    intermediate_size=64,
    vocab_size=20,
    head_dim=48,
)
# One of each way through the kernels; every format's sums are those of the kernels that
# test_triton.py has. Dtypes take turns; that of int8dq is float32, since the
# modules round to bfloat16, by up to a quarter of a step, what they round to int8 then,
# and the kernel does not.
SCHEMES = (None, "int4wo-32", "uintx-3-8", "int8dq", "fp6", "sparse-marlin")
# Of rounding where it is stored, by dtype: a few times its unit.
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# int8dq rounds each activation, which a last bit can turn over.
TURNED = 2e-2


def small_model(
    scheme: str | None, dtype: torch.dtype, device: torch.device
) -> Transformer:
    model = build_model(tiny_weights(SMALL), dtype=dtype, device=device)
    # Norms that change something, and logits that differ.
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" in name:
            drawn = torch.rand(weight.shape, generator=generator) + 0.5
            weight.data.copy_(drawn)
    return model if scheme is None else quantize_model(model, scheme, kernels="native")


def both(model: Transformer, **fields: Any) -> tuple[Engine, Engine]:
    """The modules' engine and the fused one over the same weights."""
    options = EngineOptions(cache_size=24, **fields)
    return Engine(model, options), Engine(model, replace(options, fused=True))


def distance(actual: Tensor, expected: Tensor) -> float:
    expected = expected.float()
    return float((actual.float() - expected).norm() / expected.norm())


def check(modules: Engine, fused: Engine, prompt: Tensor, limit: float) -> None:
    """A prompt, then a step, by both; what the caches hold as well."""
    length = prompt.shape[1]
    with torch.no_grad():
        expected, actual = modules.prefill(prompt), fused.prefill(prompt)
        assert distance(actual, expected) < limit
        token = expected.argmax(-1, keepdim=True)
        at = torch.tensor([length], device=prompt.device)
        expected, actual = modules.decode(token, at), fused.decode(token, at)
        assert distance(actual, expected) < limit
    for one, other in zip(modules._caches, fused._caches, strict=True):
        for expected, actual in zip(
            one.dequantized(), other.dequantized(), strict=True
        ):
            assert distance(actual, expected) < limit
            # Nothing beyond the positions that were written.
            assert not actual[:, :, length + 1 :].any()


def limit_of(scheme: str | None, dtype: torch.dtype) -> float:
    return max(CLOSE[dtype], TURNED) if scheme == "int8dq" else CLOSE[dtype]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_prompt_and_steps_are_those_of_the_modules(
    scheme: str | None, device: torch.device
) -> None:
    dtype = tuple(CLOSE)[SCHEMES.index(scheme) % 3]
    batch = 1 + SCHEMES.index(scheme) % 2
    model = small_model(scheme, dtype, device)
    prompt = torch.arange(3 * batch, device=device).view(batch, 3) + 5
    modules, fused = both(model, batch_size=batch)
    check(modules, fused, prompt, limit_of(scheme, dtype))
    step = fused._fused
    assert step is not None
    assert not step._split_counter.any()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_codes_of_a_quantized_cache_are_those_of_the_modules(
    kind: str, dtype: torch.dtype, device: torch.device
) -> None:
    model = small_model("int8wo", dtype, device)
    modules, fused = both(model, batch_size=2, kv_cache=kind)
    prompt = torch.tensor([[7, 8], [1, 12]], device=device)
    # A code turns over where a last bit does: by 1 of 127 of a head's largest value, or
    # in fp8 by an eighth of its own. As many as may, below, move a vector by so much.
    turned = 0.06**0.5 * (1 / 127 if kind == "int8" else 1 / 8)
    check(modules, fused, prompt, max(turned, CLOSE[dtype]))
    same = 0
    for one, other in zip(modules._caches, fused._caches, strict=True):
        for name in ("k_cache", "v_cache"):
            expected, actual = getattr(one, name), getattr(other, name)
            same += int((expected[:, :, :2] == actual[:, :, :2]).sum())
    positions = 2 * modules._caches[0].k_cache[:, :, :2].numel()
    # The modules round to float16 twice where the kernel does once: half a unit of a
    # value is up to 0.06 of a step between codes.
    assert same / positions > (0.99 if dtype == torch.float32 else 0.94)


def test_sequences_of_their_own_lengths(device: torch.device) -> None:
    model = small_model("fp6", torch.float32, device)
    modules, fused = both(model, batch_size=3)
    prompt = torch.tensor([[7, 8], [1, 12], [9, 9]], device=device)
    lengths = torch.tensor([2, 1, 2], device=device)
    with torch.no_grad():
        for engine in (modules, fused):
            engine.prefill(prompt, lengths)
        token, at = prompt[:, -1:], lengths[:, None]
        expected, actual = modules.decode(token, at), fused.decode(token, at)
    assert distance(actual, expected) < CLOSE[torch.float32]


def test_a_prompt_of_many_tokens_runs_on_the_modules(device: torch.device) -> None:
    model = small_model("int8wo", torch.float32, device)
    modules, fused = both(model)
    prompt = torch.arange(11, device=device).view(1, -1)
    check(modules, fused, prompt, CLOSE[torch.float32])


@pytest.mark.parametrize("scheme", [None, "int8dq", "uintx-2-8", "sparse-marlin"])
def test_splits_of_the_columns_are_joined(
    scheme: str | None, device: torch.device
) -> None:
    """Of many columns, whose parts several programs sum, with all there is around."""
    from llama_perf.kernels.triton.launch_fused import (
        Norm,
        fused_launch,
        project,
        project_gated,
    )
    from llama_perf.llama.fused import packed

    columns = 1304
    generator = torch.Generator().manual_seed(2)
    layers = [nn.Sequential(Linear(columns, 20)) for _ in range(2)]
    quantize = None
    if scheme is not None:
        quantize = make_quantizer(
            scheme, kernels="native", device=device, dtype=torch.float32
        )
    for layer in layers:
        drawn = torch.randn(20, columns, generator=generator) / columns**0.5
        layer[0].weight = nn.Parameter(drawn, requires_grad=False)
        layer.to(device)
        if quantize is not None:
            quantize(layer, "layer")
    x = torch.randn(2, columns, generator=generator).to(device)
    norm_weight = torch.rand(columns, generator=generator).to(device) + 0.5
    first, second = (packed(layer.get_parameter("0.weight"), "w") for layer in layers)
    assert fused_launch(first, 2, weights=2).splits > 1
    counter = torch.zeros(2, dtype=torch.int32, device=device)
    norm = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm_weight
    gate, up = (layer(norm) for layer in layers)
    limit = limit_of(scheme, torch.float32)
    for _ in range(2):
        actual = project_gated(
            x, first, second, counter, norm=Norm(weight=norm_weight, eps=1e-5)
        )
        assert distance(actual, F.silu(gate) * up) < limit
    before = torch.randn(2, 20, generator=generator).to(device)
    residual = before.clone()
    assert project(x, first, counter, residual=residual) is residual
    assert distance(residual, before + layers[0](x)) < limit
    assert not counter.any()


@pytest.mark.parametrize("scheme", [None, "int8wo", "int4wo-32"])
def test_values_of_a_fused_row_are_checked(
    scheme: str | None, device: torch.device
) -> None:
    model = small_model(scheme, torch.float32, device)
    row = RowSpec(model="small", dtype="float32", fused=True, max_new_tokens=3)
    prepared = Prepared(
        row=row,
        engine=Engine(model, EngineOptions(cache_size=24, fused=True)),
        prompt=torch.tensor([[3, 1]], device=device),
        weights="synthetic",
        build_s=0.0,
    )
    generator = torch.Generator(device=device).manual_seed(0)
    check = check_values(prepared, warm_up(prepared, generator))
    assert check.against == OPERATORS
    assert check.tokens == 3
    with pytest.raises(ValuesError, match=f"against the {OPERATORS}"):
        check_values(prepared, warm_up(prepared, generator, damaged=True))


def test_greedy_tokens_are_the_modules(device: torch.device) -> None:
    model = small_model("int4wo-32", torch.float32, device)
    prompt = torch.tensor([[3, 1, 4]], device=device)
    expected, actual = (
        engine.generate(prompt, max_new_tokens=4, sampling=GREEDY)
        for engine in both(model)
    )
    assert torch.equal(actual, expected)


def test_what_cannot_be_fused_says_why() -> None:
    row = {"model": "Llama-2-7b-chat-hf", "fused": True}
    for changed, reason in (
        ({"device": "cpu"}, "need device 'cuda'"),
        ({"quantization": "int8wo", "kernels": "torchao"}, "kernels = 'native'"),
        ({"attention": "sdpa"}, "attention = 'decode'"),
        ({"batch_size": 9}, "at most 8"),
    ):
        with pytest.raises(SpecError, match=reason):
            RowSpec(**row, **changed)  # type: ignore[arg-type]
    assert RowSpec(**row).id.endswith(".fused")  # type: ignore[arg-type]
    model = build_model(tiny_weights(), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(NotRunnable, match="fused: it needs a CUDA device, not cpu"):
        Engine(model, EngineOptions(cache_size=8, fused=True))


def test_weights_and_shapes_without_a_kernel_are_named(device: torch.device) -> None:
    model = small_model("float8dq-row", torch.float32, device)
    named = r"fused: output\.weight, Float8"
    with pytest.raises(NotRunnable, match=named):
        Engine(model, EngineOptions(cache_size=8, fused=True))
    narrow = build_model(tiny_weights(), dtype=torch.float32, device=device)
    with pytest.raises(NotRunnable, match="heads are 8 wide; allowed: multiples of 16"):
        Engine(narrow, EngineOptions(cache_size=8, fused=True))
    with pytest.raises(NotRunnable, match="a batch of 9 is not allowed"):
        Engine(narrow, EngineOptions(batch_size=9, cache_size=8, fused=True))
