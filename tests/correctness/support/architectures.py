"""Tiny random models of each architecture, of transformers' own classes."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from llama_perf.kernels import cache_codes

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
WINDOW = 6
LATE = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA = LlamaConfig, LlamaForCausalLM
MISTRAL = MistralConfig, MistralForCausalLM
QWEN2 = Qwen2Config, Qwen2ForCausalLM
QWEN3 = Qwen3Config, Qwen3ForCausalLM
SMOLLM3 = SmolLM3Config, SmolLM3ForCausalLM
Classes = tuple[Callable[..., Any], Callable[..., Any]]
MODELS: dict[str, tuple[Classes, dict[str, Any]]] = {
    "llama": (LLAMA, {}),
    "llama with biases": (LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "mistral with a window": (MISTRAL, {"sliding_window": WINDOW}),
    "mistral without": (MISTRAL, {"sliding_window": None, "head_dim": 32}),
    "qwen2": (QWEN2, {}),
    "qwen2 with late windows": (QWEN2, LATE),
    "qwen3": (QWEN3, {"head_dim": 32}),
    "qwen3 with all it may have": (
        QWEN3,
        {**LATE, "head_dim": 32, "attention_bias": True},
    ),
    "smollm3": (SMOLLM3, {"no_rope_layer_interval": 2, "tie_word_embeddings": True}),
    # llama.cpp has this interval in its code.
    "smollm3 as published": (SMOLLM3, {"num_hidden_layers": 4}),
    "smollm3 with windows": (
        SMOLLM3,
        {
            "no_rope_layer_interval": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
        },
    ),
}
IDS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))


def random_model(name: str, **changes: Any) -> PreTrainedModel:
    """One whose every weight, bias and norm changes the logits."""
    (config, model), own = MODELS[name]
    torch.manual_seed(0)
    made: PreTrainedModel = model(config(**{**SHAPE, **own, **changes}))
    made.eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            parameter.normal_(0.0, 0.5)
    for key, parameter in made.named_parameters():
        if key.endswith("norm.weight"):
            parameter.add_(1.0)
    return made


class RoundingCache(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """transformers' cache, of keys and values as a cache of `kind` rounds them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.codes = {"int8": cache_codes.INT8, "fp8": cache_codes.FP8}[kind]

    def update(self, *states: Any, **options: Any) -> Any:
        key, value, *rest = states
        rounded = [
            cache_codes.dequantized(*cache_codes.quantize(x, self.codes), x.dtype)
            for x in (key, value)
        ]
        return super().update(*rounded, *rest, **options)


@cache
def expected(name: str, kind: str | None = None) -> Tensor:
    """transformers' float32 logits of IDS, (2, 24, 97), over such a cache."""
    past = None if kind is None else RoundingCache(kind)
    logits: Tensor = random_model(name)(IDS, past_key_values=past).logits
    assert logits.std() > 0.5, "logits near zero would prove nothing"
    return logits


def save(name: str, folder: Path) -> Path:
    """The model as transformers saves it."""
    random_model(name).save_pretrained(folder)
    return folder
