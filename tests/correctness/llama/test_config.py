from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf.errors import SpecError
from llama_perf.llama.config import PRESETS, preset, preset_name
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.weights_samples import TINY

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
# The reference's table, in bfloat16.
GB = {"7B": 13.21, "Llama-3-8B": 15.01, "Llama-3.1-8B": 15.01}
MEANINGS = {
    "7B": ["Llama-2-7b-chat-hf"],
    "Llama-3-8B": ["Meta-Llama-3-8B", "Meta-Llama-3-8B-Instruct"],
    "Llama-3.1-8B": ["Meta-Llama-3.1-8B"],
    "Llama-3.2-1B": ["Llama-3.2-1B-Instruct"],
    "Mistral-7B": ["Mistral-7B", "Mistral-7B-v0.3"],
    "CodeLlama-7b-Python-hf": ["CodeLlama-7b-Python-hf"],
    "stories110M": ["stories110M"],
    "Llama-3.1-405B": ["llama-3.1-405b"],
    None: ["Foo-17B", "Foo-7Bar", "Llama"],
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_parameters_and_size_are_as_published(name: str) -> None:
    with torch.device("meta"):
        model = Transformer(preset(name)).to(torch.bfloat16)
    if model.config.tied_embeddings:
        model.output.weight = model.tok_embeddings.weight
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PUBLISHED.get(name, count)
    size = model.weight_bytes() / 1e9
    assert 0 < size == pytest.approx(GB.get(name, size), abs=0.01)


@pytest.mark.parametrize(("name", "models"), MEANINGS.items())
def test_a_models_name_means_its_preset(name: str | None, models: list[str]) -> None:
    assert {preset_name(model) for model in models} == {name}


def test_an_unknown_model_is_told_the_presets() -> None:
    with pytest.raises(SpecError, match=r"model: 'Foo-17B' is not allowed; .*7B, 13B"):
        preset("Foo-17B")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim: 0 is not allowed; allowed: a whole number, 1 or more"),
        ("n_layers", -1, "n_layers: -1 is not allowed"),
        ("n_heads", 4.0, "n_heads: 4.0 is not allowed; allowed: a whole number"),
        ("vocab_size", True, "vocab_size: True is not allowed"),
        ("intermediate_size", "64", "intermediate_size: '64' is not allowed"),
        ("context", 0, "context: 0 is not allowed"),
        ("head_dim", 7, "head_dim: 7 is not allowed; RoPE needs an even one"),
        ("n_kv_heads", 3, "n_kv_heads: 3 is not allowed; it must divide n_heads 4"),
        ("norm_eps", "small", "norm_eps: 'small' is not allowed"),
        ("norm_eps", float("nan"), "norm_eps: nan is not allowed"),
        ("rope_base", 0, "rope_base: 0 is not allowed"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        replace(TINY, **{field: value})
    assert str(caught.value).startswith(message)
