"""The shapes of published Llama models, by name."""

from __future__ import annotations

import re
from typing import Any

from llama_perf.errors import SpecError
from llama_perf.llama.config import ModelConfig, RopeScaling


def _config(
    dim: int,
    n_layers: int,
    n_heads: int,
    intermediate_size: int,
    *,
    n_kv_heads: int | None = None,
    vocab_size: int = 32000,
    **rest: Any,
) -> ModelConfig:
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads or n_heads,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        head_dim=dim // n_heads,
        **rest,
    )


_LLAMA3: dict[str, Any] = {"vocab_size": 128256, "rope_base": 500000.0}
_LLAMA31: dict[str, Any] = {
    **_LLAMA3,
    "context": 131072,
    "rope_scaling": RopeScaling(factor=8.0),
}
_LLAMA32: dict[str, Any] = {
    **_LLAMA31,
    "rope_scaling": RopeScaling(factor=32.0),
    "tied_embeddings": True,
}

PRESETS: dict[str, ModelConfig] = {
    "7B": _config(4096, 32, 32, 11008, context=4096),
    "13B": _config(5120, 40, 40, 13824, context=4096),
    "30B": _config(6656, 60, 52, 17920, norm_eps=1e-6),
    "34B": _config(
        8192, 48, 64, 22016, n_kv_heads=8, rope_base=1000000.0, context=16384
    ),
    "70B": _config(8192, 80, 64, 28672, n_kv_heads=8, context=4096),
    "CodeLlama-7b-Python-hf": _config(
        4096, 32, 32, 11008, rope_base=1000000.0, context=16384
    ),
    "Mistral-7B": _config(4096, 32, 32, 14336, n_kv_heads=8, context=32768),
    "stories15M": _config(288, 6, 6, 768, context=256),
    "stories110M": _config(768, 12, 12, 2048, context=1024),
    "SmolLM2-135M": _config(
        576,
        30,
        9,
        1536,
        n_kv_heads=3,
        vocab_size=49152,
        rope_base=100000.0,
        context=8192,
        tied_embeddings=True,
    ),
    "Llama-3-8B": _config(4096, 32, 32, 14336, n_kv_heads=8, context=8192, **_LLAMA3),
    "Llama-3-70B": _config(8192, 80, 64, 28672, n_kv_heads=8, context=8192, **_LLAMA3),
    "Llama-3.1-8B": _config(4096, 32, 32, 14336, n_kv_heads=8, **_LLAMA31),
    "Llama-3.1-70B": _config(8192, 80, 64, 28672, n_kv_heads=8, **_LLAMA31),
    "Llama-3.1-405B": _config(16384, 126, 128, 53248, n_kv_heads=8, **_LLAMA31),
    "Llama-3.2-1B": _config(2048, 16, 32, 8192, n_kv_heads=8, **_LLAMA32),
    "Llama-3.2-3B": _config(3072, 28, 24, 8192, n_kv_heads=8, **_LLAMA32),
}


def preset_name(model: str) -> str | None:
    """The preset that `model`'s name means, or None.

    An exact name, else the longest preset that stands in the name as whole words:
    "Meta-Llama-3-8B-Instruct" is Llama-3-8B and "Llama-2-7b-chat-hf" is 7B, but
    "Foo-17B" is not 7B. Case does not matter.
    """
    for name in PRESETS:
        if name.lower() == model.lower():
            return name
    hits = [
        name
        for name in PRESETS
        if re.search(
            rf"(?<![0-9a-z.]){re.escape(name.lower())}(?![0-9a-z.])", model.lower()
        )
    ]
    return max(hits, key=len, default=None)


def preset(model: str) -> ModelConfig:
    """The configuration of the preset that `model` names; raises SpecError."""
    name = preset_name(model)
    if name is None:
        raise SpecError(
            "model",
            model,
            "allowed: the path of a checkpoint, a name under --checkpoints, or one of"
            f" the presets {', '.join(PRESETS)}",
        )
    return PRESETS[name]
