"""The shapes of published models by name. Knows neither tensors nor files."""

import re
from typing import Any

from llama_perf.errors import SpecError
from llama_perf.llama.config import ModelConfig, RopeScaling


def _config(*sizes: int, **rest: Any) -> ModelConfig:
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "intermediate_size")
    shape: dict[str, Any] = dict(zip(names, sizes, strict=True))
    head_dim = shape["dim"] // shape["n_heads"]
    return ModelConfig(**{"vocab_size": 32000, **rest, **shape, "head_dim": head_dim})


_LLAMA3: dict[str, Any] = {"vocab_size": 128256, "rope_base": 5e5}
_LLAMA31 = {**_LLAMA3, "context": 131072, "rope_scaling": RopeScaling(factor=8.0)}
_TIED: dict[str, Any] = {"tied_embeddings": True}
_LLAMA32 = {**_LLAMA31, **_TIED, "rope_scaling": RopeScaling(factor=32.0)}

PRESETS: dict[str, ModelConfig] = {
    "7B": _config(4096, 32, 32, 32, 11008, context=4096),
    "13B": _config(5120, 40, 40, 40, 13824, context=4096),
    "30B": _config(6656, 60, 52, 52, 17920, norm_eps=1e-6),
    "34B": _config(8192, 48, 64, 8, 22016, rope_base=1e6, context=16384),
    "70B": _config(8192, 80, 64, 8, 28672, context=4096),
    "CodeLlama-7b-Python-hf": _config(
        4096, 32, 32, 32, 11008, rope_base=1e6, context=16384
    ),
    "Mistral-7B": _config(4096, 32, 32, 8, 14336, context=32768),
    "stories15M": _config(288, 6, 6, 6, 768, context=256),
    "stories110M": _config(768, 12, 12, 12, 2048, context=1024),
    "SmolLM2-135M": _config(
        576, 30, 9, 3, 1536, vocab_size=49152, rope_base=1e5, context=8192, **_TIED
    ),
    "Llama-3-8B": _config(4096, 32, 32, 8, 14336, context=8192, **_LLAMA3),
    "Llama-3-70B": _config(8192, 80, 64, 8, 28672, context=8192, **_LLAMA3),
    "Llama-3.1-8B": _config(4096, 32, 32, 8, 14336, **_LLAMA31),
    "Llama-3.1-70B": _config(8192, 80, 64, 8, 28672, **_LLAMA31),
    "Llama-3.1-405B": _config(16384, 126, 128, 8, 53248, **_LLAMA31),
    "Llama-3.2-1B": _config(2048, 16, 32, 8, 8192, **_LLAMA32),
    "Llama-3.2-3B": _config(3072, 28, 24, 8, 8192, **_LLAMA32),
}


def preset_name(model: str) -> str | None:
    """The preset that `model`'s name means, or None.

    The longest preset that the name contains as whole words, in any case:
    "Meta-Llama-3-8B-Instruct" is Llama-3-8B and "Llama-2-7b-chat-hf" is 7B, but
    "Foo-17B" is not 7B.
    """
    words = r"(?i)(?<![0-9a-z.]){}(?![0-9a-z.])".format
    hits = [name for name in PRESETS if re.search(words(re.escape(name)), model)]
    return max(hits, key=len, default=None)


def preset(model: str) -> ModelConfig:
    """The configuration of the preset that `model` names; raises SpecError."""
    name = preset_name(model)
    if name is None:
        allowed = (
            "allowed: the path of a checkpoint, a name under --checkpoints, or one of"
            f" the presets {', '.join(PRESETS)}"
        )
        raise SpecError("model", model, allowed, known=PRESETS)
    return PRESETS[name]
