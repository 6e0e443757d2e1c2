"""The shape of a Llama model, and the shapes of published ones by name.

Knows neither tensors nor files: `llama_perf.checkpoints.config` reads `config.json` and
its like.
"""

import re
from dataclasses import dataclass, fields
from typing import Any

from llama_perf.errors import SpecError

# More than any model has. Sizes are 32-bit numbers to kernels and file formats, and a
# damaged number of layers must not keep a reader busy.
MAX_SIZE, MAX_LAYERS = 2**31 - 1, 1000
# Well within float32, in which the model computes.
_MAX_NUMBER = 1e30


def check_whole(field: str, value: object, most: int = MAX_SIZE) -> None:
    """Raise SpecError unless `value` is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise SpecError(field, value, f"allowed: a whole number, 1 to {most}")


def check_number(field: str, value: object) -> None:
    """Raise SpecError unless `value` is a number above 0, within float32."""
    is_number = type(value) in (int, float)
    if not is_number or not 0 < value <= _MAX_NUMBER:  # type: ignore[operator]
        allowed = f"allowed: a number, more than 0 and at most {_MAX_NUMBER:g}"
        raise SpecError(field, value, allowed)


def _check_fields(record: "ModelConfig | RopeScaling") -> None:
    for field in fields(record):
        value = getattr(record, field.name)
        if field.type is int:
            most = MAX_LAYERS if field.name == "n_layers" else MAX_SIZE
            check_whole(field.name, value, most)
        elif field.type is float:
            check_number(field.name, value)
        elif field.type is bool and type(value) is not bool:
            raise SpecError(field.name, value, "allowed: true or false")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling ("llama3" in Hugging Face's configurations)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a Llama model, in the names of Meta's reference code.

    `context` is the number of positions the model was trained for.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    context: int = 2048
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.n_heads % self.n_kv_heads:
            allowed = f"it must divide n_heads {self.n_heads}"
            raise SpecError("n_kv_heads", self.n_kv_heads, allowed)
        if self.head_dim % 2:
            raise SpecError("head_dim", self.head_dim, "RoPE needs an even one")

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of each linear of a block, by its name, in the model's order."""
        dim, hidden = self.dim, self.intermediate_size
        return {
            "attention.wqkv": (self.qkv_size, dim),
            "attention.wo": (dim, self.n_heads * self.head_dim),
            "feed_forward.w1": (hidden, dim),
            "feed_forward.w3": (hidden, dim),
            "feed_forward.w2": (dim, hidden),
        }

    @property
    def linear_names(self) -> list[str]:
        """The names of all linears of the model."""
        layers = range(self.n_layers)
        return [f"layers.{n}.{name}" for n in layers for name in self.linears] + [
            "output"
        ]


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
            "allowed: the path of a checkpoint, a name under --checkpoints, the"
            " owner/name of a model in the hub cache, or one of the presets"
            f" {', '.join(PRESETS)}"
        )
        raise SpecError("model", model, allowed, known=PRESETS)
    return PRESETS[name]
