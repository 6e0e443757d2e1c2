from __future__ import annotations

from typing import Any

import pytest
import torch

from llama_perf.errors import SpecError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import PRESETS, preset, preset_name
from llama_perf.llama.transformer import Transformer

# Parameters as published with each model, embeddings counted once where tied.
PUBLISHED = {
    "7B": 6_738_415_616,
    "13B": 13_015_864_320,
    "30B": 32_528_943_616,
    "70B": 68_976_648_192,
    "Mistral-7B": 7_241_732_096,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-405B": 405_853_388_800,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "SmolLM2-135M": 134_515_008,
    "stories15M": 24_407_712,
}


def on_meta(name: str) -> Transformer:
    with torch.device("meta"):
        model = Transformer(preset(name))
    if model.config.tied_embeddings:
        model.output.weight = model.tok_embeddings.weight
    return model


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_are_as_published(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == count


@pytest.mark.parametrize(
    ("name", "gb"), [("7B", 13.21), ("Llama-3-8B", 15.01), ("Llama-3.1-8B", 15.01)]
)
def test_the_size_in_bfloat16_is_the_reference_tables(name: str, gb: float) -> None:
    size = on_meta(name).to(torch.bfloat16).weight_bytes() / 1e9
    assert size == pytest.approx(gb, abs=0.01)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Llama-2-7b-chat-hf", "7B"),
        ("Meta-Llama-3-8B", "Llama-3-8B"),
        ("Meta-Llama-3-8B-Instruct", "Llama-3-8B"),
        ("Meta-Llama-3.1-8B", "Llama-3.1-8B"),
        ("Llama-3.2-1B-Instruct", "Llama-3.2-1B"),
        ("Mistral-7B", "Mistral-7B"),
        ("Mistral-7B-v0.3", "Mistral-7B"),
        ("CodeLlama-7b-Python-hf", "CodeLlama-7b-Python-hf"),
        ("stories110M", "stories110M"),
        ("llama-3.1-405b", "Llama-3.1-405B"),
        ("Foo-17B", None),
        ("Foo-7Bar", None),
        ("Llama", None),
    ],
)
def test_a_models_name_means_its_preset(model: str, name: str | None) -> None:
    assert preset_name(model) == name


def test_an_unknown_model_is_told_the_presets() -> None:
    with pytest.raises(SpecError, match=r"model: 'Foo-17B' is not allowed; .*7B, 13B"):
        preset("Foo-17B")


GOOD: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 48,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim: 0 is not allowed; allowed: a whole number, 1 or more"),
        ("n_layers", -1, "n_layers: -1 is not allowed"),
        ("n_heads", 4.0, "n_heads: 4.0 is not allowed; allowed: a whole number"),
        ("vocab_size", True, "vocab_size: True is not allowed"),
        ("intermediate_size", "64", "intermediate_size: '64' is not allowed"),
        ("head_dim", 7, "head_dim: 7 is not allowed; RoPE needs an even one"),
        ("n_kv_heads", 3, "n_kv_heads: 3 is not allowed; it must divide n_heads 4"),
        ("norm_eps", "small", "norm_eps: 'small' is not allowed"),
        ("norm_eps", float("nan"), "norm_eps: nan is not allowed"),
        ("rope_base", 0, "rope_base: 0 is not allowed"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        ModelConfig(**{**GOOD, field: value})
    assert str(caught.value).startswith(message)


def test_every_preset_is_a_model_that_can_be_built() -> None:
    for name in PRESETS:
        assert on_meta(name).weight_bytes() > 0
