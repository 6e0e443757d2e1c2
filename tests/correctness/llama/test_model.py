"""Logits against Hugging Face transformers' on the same weights; shapes of models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, SmolLM3Config

from llama_perf import load_model
from llama_perf.checkpoints.config import from_hugging_face
from llama_perf.errors import SpecError
from llama_perf.llama.presets import PRESETS, preset, preset_name
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import TINY

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 256,
}
# Meta's factors on a context so short that 200 positions feel all three bands.
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "llama 3.1 rope": {"rope_parameters": LLAMA31_ROPE, "num_key_value_heads": 2},
    "tied embeddings": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 32},
    "other epsilon and base": {
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}


IDS = torch.randint(97, (2, 200), generator=torch.Generator().manual_seed(1))


def reference(**changes: Any) -> LlamaForCausalLM:
    """A random model of transformers whose weights are large enough to tell apart."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "initializer_range": 0.2, **changes})
    model = LlamaForCausalLM(config)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.normal_(1.0, 0.2)
    return model


def assert_equal(folder: Path, theirs: LlamaForCausalLM) -> None:
    expected = theirs(IDS).logits
    assert expected.std() > 0.5, "logits near zero would prove nothing"
    actual = load_model(folder).logits(IDS)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = reference(**changes)
    for folder, size in ((tmp_path / "one", "5GB"), (tmp_path / "shards", "100KB")):
        theirs.save_pretrained(folder, max_shard_size=size)
        assert (len(list(folder.glob("*.safetensors"))) > 2) == (size == "100KB")
        assert_equal(folder, theirs)


@pytest.mark.parametrize(
    "without",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {**LLAMA31_ROPE, "factor": 4.0}},
        {"rms_norm_eps": 1e-2},
    ],
    ids=["no scaling", "another factor", "another epsilon"],
)
def test_the_comparison_sees_a_wrong_configuration(
    tmp_path: Path, without: dict[str, Any]
) -> None:
    right = reference(rope_parameters=LLAMA31_ROPE)
    wrong = reference(**{"rope_parameters": LLAMA31_ROPE, **without})
    wrong.load_state_dict(right.state_dict())
    wrong.save_pretrained(tmp_path)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(tmp_path, right)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_close_to_fp32_as_transformers_is(
    tmp_path: Path, dtype: str
) -> None:
    theirs = reference(num_key_value_heads=2)
    exact = theirs(IDS).logits
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=dtype).logits(IDS)
    half = theirs.to(getattr(torch, dtype))(IDS).logits.float()

    def decibels(logits: Tensor) -> float:
        noise = (logits - exact).square().mean()
        return float(10 * torch.log10(exact.square().mean() / noise))

    assert decibels(ours) > decibels(half) - 2.0
    assert decibels(half) > 20.0, "of two wrong models each is as close as the other"


# Parameters as published with each model, embeddings counted once where tied.
PUBLISHED = {
    "7B": 6_738_415_616,
    "13B": 13_015_864_320,
    "30B": 32_528_943_616,
    "65B": 65_285_660_672,
    "70B": 68_976_648_192,
    "Mistral-7B": 7_241_732_096,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mistral-Nemo": 12_247_782_400,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-405B": 405_853_388_800,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.3-70B": 70_553_706_496,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "SmolLM3-3B": 3_075_098_624,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "stories15M": 24_407_712,
}
# The reference's table, in bfloat16.
GB = {"7B": 13.21, "Llama-3-8B": 15.01, "Llama-3.1-8B": 15.01}
MEANINGS = {
    "7B": ["Llama-2-7b-chat-hf"],
    "Llama-3-8B": ["Meta-Llama-3-8B", "Meta-Llama-3-8B-Instruct"],
    "Llama-3.1-8B": ["Meta-Llama-3.1-8B"],
    "Llama-3.2-1B": ["Llama-3.2-1B-Instruct"],
    "Mistral-7B": ["Mistral-7B"],
    "Mistral-7B-v0.1": ["mistralai/Mistral-7B-v0.1"],
    "Mistral-7B-Instruct-v0.1": ["Mistral-7B-Instruct-v0.1"],
    "Mistral-Nemo": ["Mistral-Nemo-Instruct-2407"],
    "Llama-3.3-70B": ["Llama-3.3-70B-Instruct"],
    "llama-7b": ["huggyllama/llama-7b"],
    "Qwen2.5-7B": ["Qwen/Qwen2.5-7B-Instruct"],
    "Qwen2-7B": ["Qwen2-7B-Instruct"],
    "Qwen3-0.6B": ["Qwen3-0.6B-Base"],
    "SmolLM3-3B": ["SmolLM3-3B-Base"],
    "CodeLlama-7b-Python-hf": ["CodeLlama-7b-Python-hf"],
    "stories110M": ["stories110M"],
    "Llama-3.1-405B": ["llama-3.1-405b"],
    None: ["Foo-17B", "Foo-7Bar", "Llama", "Qwen2.5-Coder-7B", "gemma-7b"],
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


@pytest.mark.parametrize(
    ("theirs", "name", "other"),
    [
        (LlamaConfig(), "llama-7b", {}),
        # Their defaults are not the published model's here.
        (
            MistralConfig(max_position_embeddings=32768, rms_norm_eps=1e-5),
            *("Mistral-7B-v0.1", {}),
        ),
        (
            SmolLM3Config(rope_theta=5e6, max_position_embeddings=65536),
            *("SmolLM3-3B", {}),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_preset_is_the_default_of_transformers(
    theirs: Any, name: str, other: dict[str, Any]
) -> None:
    read = from_hugging_face(theirs.to_dict(), source="transformers")
    assert read == replace(PRESETS[name], **other)


def test_an_unknown_model_is_told_the_presets() -> None:
    with pytest.raises(SpecError, match=r"model: 'Foo-17B' is not allowed; .*7B, 13B"):
        preset("Foo-17B")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim: 0 is not allowed; allowed: a whole number, 1 to 2147483647"),
        ("n_layers", -1, "n_layers: -1 is not allowed"),
        ("n_heads", 4.0, "n_heads: 4.0 is not allowed; allowed: a whole number"),
        ("vocab_size", True, "vocab_size: true is not allowed"),
        ("intermediate_size", "64", "intermediate_size: '64' is not allowed"),
        ("context", 0, "context: 0 is not allowed"),
        ("head_dim", 7, "head_dim: 7 is not allowed; RoPE needs an even one"),
        (
            "n_kv_heads",
            3,
            "n_kv_heads: 3 is not allowed; it must divide the number of heads, 4",
        ),
        ("norm_eps", "small", "norm_eps: 'small' is not allowed"),
        ("norm_eps", float("nan"), "norm_eps: nan is not allowed"),
        ("rope_base", 0, "rope_base: 0 is not allowed"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    assert refusal(replace, TINY, **{field: value}).startswith(message)
