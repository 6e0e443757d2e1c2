"""Logits against Hugging Face transformers' LlamaForCausalLM on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llama_perf import load_model

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
