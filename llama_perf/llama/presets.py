"""The shapes of published models by name. Knows neither tensors nor files."""

import re
from typing import Any

from llama_perf.errors import SpecError
from llama_perf.llama.config import ModelConfig, RopeScaling


def _config(*sizes: int, **rest: Any) -> ModelConfig:
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "intermediate_size")
    shape: dict[str, Any] = dict(zip(names, sizes, strict=True))
    shape["head_dim"] = shape["dim"] // shape["n_heads"]
    return ModelConfig(**{"vocab_size": 32000, **shape, **rest})


_TIED: dict[str, Any] = {"tied_embeddings": True}
_LLAMA1: dict[str, Any] = {"norm_eps": 1e-6}
_LLAMA2: dict[str, Any] = {"context": 4096}
_CODE: dict[str, Any] = {"rope_base": 1e6, "context": 16384}
_LLAMA3: dict[str, Any] = {"vocab_size": 128256, "rope_base": 5e5}
_LLAMA31 = {**_LLAMA3, "context": 131072, "rope_scaling": RopeScaling(factor=8.0)}
_LLAMA32 = {**_LLAMA31, **_TIED, "rope_scaling": RopeScaling(factor=32.0)}
_MISTRAL: dict[str, Any] = {"context": 32768}
_MISTRAL_VERSIONS: dict[str, dict[str, Any]] = {
    "v0.1": {"sliding_window": 4096},
    "v0.2": {"rope_base": 1e6},
    "v0.3": {"rope_base": 1e6, "vocab_size": 32768},
}
_NEMO = {"vocab_size": 131072, "head_dim": 128, "rope_base": 1e6, "context": 131072}
_SMOLLM2 = {"vocab_size": 49152, "rope_base": 1e5, "context": 8192, **_TIED}
_QWEN: dict[str, Any] = {"norm_eps": 1e-6, "rope_base": 1e6}
_QWEN2 = {**_QWEN, "qkv_bias": True, "context": 32768}
_SMALL_QWEN2 = {**_QWEN2, **_TIED, "vocab_size": 151936}
_LARGE_QWEN2 = {**_QWEN2, "vocab_size": 152064}
_QWEN25 = {**_LARGE_QWEN2, "context": 131072}
_QWEN3 = {**_QWEN, "qk_norm": True, "head_dim": 128, "vocab_size": 151936}
_QWEN3 |= {"context": 40960}

PRESETS: dict[str, ModelConfig] = {
    "7B": _config(4096, 32, 32, 32, 11008, **_LLAMA2),
    "13B": _config(5120, 40, 40, 40, 13824, **_LLAMA2),
    "30B": _config(6656, 60, 52, 52, 17920, **_LLAMA1),
    "34B": _config(8192, 48, 64, 8, 22016, **_CODE),
    "65B": _config(8192, 80, 64, 64, 22016),
    "70B": _config(8192, 80, 64, 8, 28672, **_LLAMA2),
    "llama-7b": _config(4096, 32, 32, 32, 11008, **_LLAMA1),
    "llama-13b": _config(5120, 40, 40, 40, 13824, **_LLAMA1),
    "CodeLlama-7b-Python-hf": _config(4096, 32, 32, 32, 11008, **_CODE),
    "stories15M": _config(288, 6, 6, 6, 768, context=256),
    "stories110M": _config(768, 12, 12, 12, 2048, context=1024),
    "Llama-3-8B": _config(4096, 32, 32, 8, 14336, context=8192, **_LLAMA3),
    "Llama-3-70B": _config(8192, 80, 64, 8, 28672, context=8192, **_LLAMA3),
    "Llama-3.1-8B": _config(4096, 32, 32, 8, 14336, **_LLAMA31),
    "Llama-3.1-70B": _config(8192, 80, 64, 8, 28672, **_LLAMA31),
    "Llama-3.1-405B": _config(16384, 126, 128, 8, 53248, **_LLAMA31),
    "Llama-3.2-1B": _config(2048, 16, 32, 8, 8192, **_LLAMA32),
    "Llama-3.2-3B": _config(3072, 28, 24, 8, 8192, **_LLAMA32),
    "Llama-3.3-70B": _config(8192, 80, 64, 8, 28672, **_LLAMA31),
    # Its stored rows have no window: what is measured under a name stays the same.
    "Mistral-7B": _config(4096, 32, 32, 8, 14336, **_MISTRAL),
    **{
        f"Mistral-7B-{name}": _config(4096, 32, 32, 8, 14336, **_MISTRAL, **rest)
        for version, rest in _MISTRAL_VERSIONS.items()
        for name in (version, f"Instruct-{version}")
    },
    "Mistral-Nemo": _config(5120, 40, 32, 8, 14336, **_NEMO),
    "SmolLM2-135M": _config(576, 30, 9, 3, 1536, **_SMOLLM2),
    "SmolLM2-360M": _config(960, 32, 15, 5, 2560, **_SMOLLM2),
    "SmolLM2-1.7B": _config(
        2048, 24, 32, 32, 8192, **{**_SMOLLM2, "rope_base": 130000.0}
    ),
    "SmolLM3-3B": _config(
        *(2048, 36, 16, 4, 11008),
        **{**_LLAMA3, **_TIED, **_LLAMA1, "rope_base": 5e6, "context": 65536},
        nope_layers=tuple(range(3, 36, 4)),
    ),
    "Qwen2-0.5B": _config(896, 24, 14, 2, 4864, **{**_SMALL_QWEN2, "context": 131072}),
    "Qwen2-1.5B": _config(1536, 28, 12, 2, 8960, **{**_SMALL_QWEN2, "context": 131072}),
    "Qwen2-7B": _config(3584, 28, 28, 4, 18944, **_QWEN25),
    "Qwen2-72B": _config(8192, 80, 64, 8, 29568, **{**_QWEN25, "norm_eps": 1e-5}),
    "Qwen2.5-0.5B": _config(896, 24, 14, 2, 4864, **_SMALL_QWEN2),
    "Qwen2.5-1.5B": _config(
        1536, 28, 12, 2, 8960, **{**_SMALL_QWEN2, "context": 131072}
    ),
    "Qwen2.5-3B": _config(2048, 36, 16, 2, 11008, **_SMALL_QWEN2),
    "Qwen2.5-7B": _config(3584, 28, 28, 4, 18944, **_QWEN25),
    "Qwen2.5-14B": _config(5120, 48, 40, 8, 13824, **{**_QWEN25, "norm_eps": 1e-5}),
    "Qwen2.5-32B": _config(5120, 64, 40, 8, 27648, **{**_QWEN25, "norm_eps": 1e-5}),
    "Qwen2.5-72B": _config(8192, 80, 64, 8, 29568, **{**_QWEN25, "norm_eps": 1e-5}),
    "Qwen3-0.6B": _config(1024, 28, 16, 8, 3072, **_QWEN3, **_TIED),
    "Qwen3-1.7B": _config(2048, 28, 16, 8, 6144, **_QWEN3, **_TIED),
    "Qwen3-4B": _config(2560, 36, 32, 8, 9728, **_QWEN3, **_TIED),
    "Qwen3-8B": _config(4096, 36, 32, 8, 12288, **_QWEN3),
    "Qwen3-14B": _config(5120, 40, 40, 8, 17408, **_QWEN3),
    "Qwen3-32B": _config(5120, 64, 64, 8, 25600, **_QWEN3),
}


_SIZE = re.compile(r"\d+B")
_OTHER_FAMILIES = re.compile(
    r"(?i)qwen|qwq|mistral|mixtral|ministral|gemma|(?<![a-z])phi(?![a-z])|falcon|smollm"
    r"|deepseek|olmo|(?<![a-z])yi(?![a-z])|internlm|granite|bloom|opt-|mpt-|pythia|glm"
)


def preset_name(model: str) -> str | None:
    """The preset that `model`'s name means, or None.

    The longest preset that the name contains as whole words, in any case:
    "Meta-Llama-3-8B-Instruct" is Llama-3-8B and "Llama-2-7b-chat-hf" is 7B, but
    "Foo-17B" is not 7B. A size alone means a Llama, not another family's model.
    """
    words = r"(?i)(?<![0-9a-z.]){}(?![0-9a-z.])".format
    hits = [name for name in PRESETS if re.search(words(re.escape(name)), model)]
    if _OTHER_FAMILIES.search(model):
        hits = [name for name in hits if not _SIZE.fullmatch(name)]
    return max(hits, key=len, default=None)


def preset(model: str) -> ModelConfig:
    """The configuration of the preset that `model` names; raises SpecError."""
    name = preset_name(model)
    if name is None:
        allowed = (
            "allowed: the path of a checkpoint, a name under --checkpoints, the"
            " owner/name of a model in the hub cache, or one of the presets"
            f" {', '.join(PRESETS)}"
        )
        raise SpecError("model", model, allowed, known=PRESETS)
    return PRESETS[name]
