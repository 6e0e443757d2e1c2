"""Weights, groups and inputs that do not fit a scheme: one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import quantize_

from llama_perf import quantize_model, save_model
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.quantize.int4wo import Int4WeightConfig
from llama_perf.quantize.uintx import UintxWeightConfig
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.quantize.test_native_schemes import (
    COLUMNS,
    CONFIGS,
    ROWS,
    quantized,
    random_weight,
)

MATRIX = "allowed: a matrix (N, K) of float32, float16, bfloat16"
WEIGHTS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "three dimensions": (
        lambda: torch.ones(2, 3, 64),
        f"the weight is float32 (2, 3, 64); {MATRIX}",
    ),
    "one dimension": (lambda: torch.ones(64), f"the weight is float32 (64,); {MATRIX}"),
    "integers": (
        lambda: torch.ones(4, 64, dtype=torch.int8),
        f"the weight is int8 (4, 64); {MATRIX}",
    ),
    "float64": (
        lambda: torch.ones(4, 64, dtype=torch.float64),
        f"the weight is float64 (4, 64); {MATRIX}",
    ),
    "float8": (
        lambda: torch.ones(4, 64).to(torch.float8_e4m3fn),
        f"the weight is float8_e4m3fn (4, 64); {MATRIX}",
    ),
    "no rows": (
        lambda: torch.ones(0, 64),
        "the weight is (0, 64); N and K must be 1 or more",
    ),
    "no columns": (
        lambda: torch.ones(4, 0),
        "the weight is (4, 0); N and K must be 1 or more",
    ),
    "NaN": (
        lambda: torch.full((4, 64), float("nan")),
        "the weight (4, 64) has values that are not finite (NaN or infinite)",
    ),
    "infinity": (
        lambda: torch.full((4, 64), -float("inf")),
        "the weight (4, 64) has values that are not finite (NaN or infinite)",
    ),
    "too large": (
        lambda: torch.full((4, 64), -3e38),
        "the weight (4, 64) has values of up to 3e+38; allowed: 8.5e+37",
    ),
}


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(SpecError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_torchaos_quantize_is_told_what_a_weight_must_be(name: str, kind: str) -> None:
    weight, reason = WEIGHTS[kind]
    linear = nn.Linear(64, 4, bias=False)
    linear.weight = nn.Parameter(weight(), requires_grad=False)
    message = refusal(quantize_, nn.ModuleDict({"linear": linear}), CONFIGS[name])
    start, _, found = message.partition(" is not allowed; ")
    assert found == reason
    scheme = start.removeprefix("quantization: ").strip("'")
    assert name.startswith(scheme), "the scheme that was asked for"
    assert type(linear.weight) is nn.Parameter


@pytest.mark.parametrize("name", CONFIGS)
def test_the_largest_weights_allowed_stay_finite(name: str) -> None:
    weight = random_weight().clamp(-1, 1) * 2.0**126
    weight[:, ::2] = 2.0**126
    weight[:, 1::4] = -(2.0**126)
    found = quantized(CONFIGS[name], weight).weight.dequantize()
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_quantized_is_not_quantized_again(name: str) -> None:
    root = nn.ModuleDict({"linear": quantized(CONFIGS[name])})
    for config in CONFIGS.values():
        assert "the weight is quantized already: " in refusal(quantize_, root, config)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_embedding_is_not_quantized(name: str) -> None:
    root = nn.ModuleDict({"words": nn.Embedding(10, COLUMNS)})
    message = refusal(
        quantize_,
        root,
        CONFIGS[name],
        filter_fn=lambda module, _: isinstance(module, nn.Embedding),
    )
    assert message.endswith(f"Embedding (10, {COLUMNS}) is no linear layer")
    assert root["words"](torch.tensor([3])).shape == (1, COLUMNS)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_input_that_does_not_fit_is_told_what_does(name: str) -> None:
    linear = quantized(CONFIGS[name])
    for x in (torch.ones(2, COLUMNS - 1), torch.tensor(1.0), torch.ones(COLUMNS, 1)):
        message = (
            f"x: {tuple(x.shape)} is not allowed; the last dimension must be K = 192"
        )
        assert refusal(linear, x) == message
    whole = torch.ones(2, COLUMNS, dtype=torch.int64)
    message = "x: 'torch.int64' is not allowed; allowed: floating point"
    assert refusal(linear, whole) == message


@pytest.mark.parametrize("kind", [Int4WeightConfig, UintxWeightConfig])
@pytest.mark.parametrize("size", [0, -8, True, 64.0, "64", None])
def test_a_group_size_is_a_whole_number(kind: type[AOBaseConfig], size: object) -> None:
    message = f"group_size: {size!r} is not allowed; allowed: a whole number, 1 or more"
    assert refusal(kind, group_size=size) == message


@pytest.mark.parametrize("kind", [Int4WeightConfig, UintxWeightConfig])
@pytest.mark.parametrize("hqq", [0, 1, "yes", None])
def test_hqq_is_true_or_false(kind: type[AOBaseConfig], hqq: object) -> None:
    message = f"hqq: {hqq!r} is not allowed; allowed: True, False"
    assert refusal(kind, hqq=hqq) == message


@pytest.mark.parametrize("bits", [0, 9, True, 4.0, "4", None])
def test_bits_are_a_whole_number_of_1_to_8(bits: object) -> None:
    message = f"bits: {bits!r} is not allowed; the bits of uintx are 1 to 8"
    assert refusal(UintxWeightConfig, bits=bits) == message


@pytest.mark.parametrize("kind", [Int4WeightConfig, UintxWeightConfig])
def test_torchaos_quantize_is_told_which_groups_divide_k(
    kind: type[AOBaseConfig],
) -> None:
    message = refusal(quantized, kind(group_size=36))
    assert message.endswith(
        f"the group size 36 must divide K = 192 of the weight ({ROWS}, 192);"
        " allowed: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 192"
    )


def test_a_group_that_no_size_of_int4_divides_says_so() -> None:
    odd = replace(SMALL, dim=48, head_dim=8, n_heads=6)
    message = refusal(quantize_model, small(odd), "int4wo-32")
    assert message.endswith(
        "the group size 32 must divide K = 48 of model.layers.0.attention.wqkv;"
        " none of 32, 64, 128, 256 does"
    )


def test_a_group_must_divide_every_k_and_is_checked_before_anything_changes() -> None:
    model = small(replace(SMALL, intermediate_size=200))
    message = refusal(quantize_model, model, "uintx-4-16")
    assert message.endswith(
        "the group size 16 must divide K = 200 of model.layers.0.feed_forward.w2;"
        " allowed: 1, 2, 4, 8"
    )
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


@pytest.mark.parametrize(
    ("scheme", "kernels"), [("fp6", "native"), ("int8wo", "torchao")]
)
def test_a_models_weight_is_refused_by_its_name(scheme: str, kernels: str) -> None:
    message = refusal(quantize_model, small().double(), scheme, kernels=kernels)
    assert message.endswith(
        f"model.layers.0.attention.wqkv is float64 (320, 192); {MATRIX}"
    )
    for value, reason in (
        (float("nan"), "values that are not finite (NaN or infinite)"),
        (float("-inf"), "values that are not finite (NaN or infinite)"),
        (3e38, "values of up to 3e+38; allowed: 8.5e+37"),
    ):
        model = small()
        model.get_parameter("layers.1.attention.wo.weight")[3, 5] = value
        message = refusal(quantize_model, model, scheme, kernels=kernels)
        assert message.endswith(f"model.layers.1.attention.wo (192, 192) has {reason}")
        assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_torchaos_int4_on_a_cpu_says_what_it_takes() -> None:
    model = small(replace(SMALL, vocab_size=75))
    message = refusal(quantize_model, model, "int4wo-64", kernels="torchao")
    assert message.endswith(
        "torchao's packing on CPU takes rows in sixteens: N = 75 of model.output must"
        " be a multiple of 16"
    )
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    wide = small(replace(SMALL, dim=256, n_heads=8, intermediate_size=512))
    with pytest.raises(NotRunnable, match=r"int4wo-256 .* groups of 32, 64, 128"):
        quantize_model(wide, "int4wo-256", kernels="torchao")
    quantize_model(wide, "int4wo-256", kernels="native")


@pytest.mark.parametrize("scheme", [None, 4, ("int8wo",)])
def test_a_scheme_is_a_name(scheme: Any) -> None:
    message = refusal(quantize_model, small(), scheme)
    assert message.startswith(
        f"quantization: {scheme!r} is not allowed; allowed: int8wo,"
    )


def test_only_a_transformer_is_quantized_or_saved() -> None:
    message = "model: 'Linear' is not allowed; allowed: a Transformer, as load_model gi"
    other: Any = nn.Linear(3, 3)
    assert refusal(quantize_model, other, "int8wo").startswith(message)
    assert refusal(save_model, other, "saved").startswith(message)
