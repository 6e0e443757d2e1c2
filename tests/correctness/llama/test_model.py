"""Logits against Hugging Face transformers' LlamaForCausalLM on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llama_perf import load_model
from llama_perf.errors import PromptError
from llama_perf.llama.transformer import Transformer

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


def reference(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random model of transformers whose weights are large enough to tell apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**SHAPE, "initializer_range": 0.2, **changes})
    model = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1.0, 0.2)
    return model


def saved(model: LlamaForCausalLM, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def tokens(batch: int = 2, length: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SHAPE["vocab_size"], (batch, length), generator=generator)


def logits_of(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids).logits.float()
    return logits


def assert_equal(model: Transformer, theirs: LlamaForCausalLM) -> None:
    ids = tokens()
    expected = logits_of(theirs, ids)
    assert expected.std() > 0.5, "logits near zero would prove nothing"
    torch.testing.assert_close(model.logits(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = reference(**changes)
    assert_equal(load_model(saved(theirs, tmp_path)), theirs)


def test_a_sharded_folder_gives_the_same_logits(tmp_path: Path) -> None:
    theirs = reference(num_key_value_heads=2)
    folder = saved(theirs, tmp_path, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_equal(load_model(folder), theirs)


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
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(load_model(saved(wrong, tmp_path)), right)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_close_to_fp32_as_transformers_is(
    tmp_path: Path, dtype: str
) -> None:
    theirs = reference(num_key_value_heads=2)
    ids = tokens()
    exact = logits_of(theirs, ids)
    ours = load_model(saved(theirs, tmp_path), dtype=dtype).logits(ids)
    half = logits_of(theirs.to(getattr(torch, dtype)), ids)

    def decibels(logits: Tensor) -> float:
        noise = (logits - exact).square().mean()
        return float(10 * torch.log10(exact.square().mean() / noise))

    assert decibels(ours) > decibels(half) - 2.0
    assert decibels(half) > 20.0, "of two wrong models each is as close as the other"


def test_logits_without_a_cache_are_causal(tmp_path: Path) -> None:
    model = load_model(saved(reference(), tmp_path))
    ids = tokens(batch=1, length=40)
    changed = ids.clone()
    changed[0, 30:] = (changed[0, 30:] + 1) % SHAPE["vocab_size"]
    ours, other = model.logits(ids), model.logits(changed)
    torch.testing.assert_close(ours[:, :30], other[:, :30])
    assert not torch.allclose(ours[:, 30:], other[:, 30:])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros((1, 3)), r"tokens: torch.float32 \(1, 3\) is not allowed"),
        (torch.zeros(3, dtype=torch.int64), r"tokens: torch.int64 \(3,\) is not"),
        (torch.zeros((1, 0), dtype=torch.int64), r"tokens: .* is not allowed"),
        (torch.tensor([[0, 97]]), "tokens: id 97 is not allowed; .* 0 to 96"),
        (torch.tensor([[-1, 5]]), "tokens: id -1 is not allowed; .* 0 to 96"),
    ],
)
def test_wrong_tokens_are_named(tmp_path: Path, ids: Tensor, message: str) -> None:
    model = load_model(saved(reference(), tmp_path))
    with pytest.raises(PromptError, match=message):
        model.logits(ids)
