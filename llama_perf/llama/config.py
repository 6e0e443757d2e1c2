"""Shapes of Llama models: the configuration and its presets.

Knows no tensors and no files other than the text of a `config.json` or
`params.json` handed in as a dict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llama_perf.errors import SpecError, WeightsError


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling ("llama3" in Hugging Face's configurations)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


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
        for name in (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "intermediate_size",
            "vocab_size",
            "head_dim",
            "context",
        ):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SpecError(name, value, "allowed: a whole number, 1 or more")
        for name in ("norm_eps", "rope_base"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and math.isfinite(value)
            if not number or value <= 0:
                raise SpecError(name, value, "allowed: a number, more than 0")
        if self.n_heads % self.n_kv_heads:
            raise SpecError(
                "n_kv_heads", self.n_kv_heads, f"it must divide n_heads {self.n_heads}"
            )
        if self.head_dim % 2:
            raise SpecError("head_dim", self.head_dim, "RoPE needs an even one")

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim


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
            "model", model, f"a path, or one of the presets {', '.join(PRESETS)}"
        )
    return PRESETS[name]


class _Fields:
    """Typed access to the fields of a JSON file, under the file's own names."""

    def __init__(self, fields: Mapping[str, Any], *, source: str) -> None:
        self._fields = fields
        self._source = source

    def error(self, name: str, value: object, allowed: str) -> WeightsError:
        return WeightsError(f"{self._source}: {SpecError(name, value, allowed)}")

    def get(self, name: str, default: Any = None) -> Any:
        value = self._fields.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._wanted(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, value, "allowed: a whole number, 1 or more")
        return value

    def decimal(self, name: str, default: float | None = None) -> float:
        value = self._wanted(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.error(name, value, "allowed: a number, more than 0")
        return float(value)

    def table(self, name: str) -> _Fields:
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise self.error(name, value, "allowed: an object of fields")
        return _Fields(value, source=f"{self._source}: {name}")

    def _wanted(self, name: str, default: float | None) -> Any:
        value = self.get(name, default)
        if value is None:
            raise WeightsError(f"{self._source}: the field {name!r} is missing")
        return value


def from_hugging_face(config: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Read a Hugging Face `config.json`; raises WeightsError naming `source`."""
    fields = _Fields(config, source=source)
    architecture = fields.get("model_type", "llama")
    if architecture not in {"llama", "mistral"}:
        raise fields.error("model_type", architecture, "allowed: llama, mistral")
    dim, n_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
    rope = fields.table("rope_parameters" if "rope_parameters" in config else _SCALING)
    with _naming(source):
        return ModelConfig(
            dim=dim,
            n_layers=fields.whole("num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=fields.whole("num_key_value_heads", n_heads),
            intermediate_size=fields.whole("intermediate_size"),
            vocab_size=fields.whole("vocab_size"),
            head_dim=fields.whole("head_dim", dim // n_heads),
            norm_eps=fields.decimal("rms_norm_eps", 1e-6),
            rope_base=fields.decimal("rope_theta", rope.decimal("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(rope),
            context=fields.whole("max_position_embeddings", 2048),
            tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        )


_SCALING = "rope_scaling"


def _rope_scaling(rope: _Fields) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise rope.error("rope_type", kind, "allowed: default, llama3")
    return RopeScaling(
        factor=rope.decimal("factor"),
        low_freq_factor=rope.decimal("low_freq_factor"),
        high_freq_factor=rope.decimal("high_freq_factor"),
        original_context=rope.whole("original_max_position_embeddings"),
    )


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` from which `from_hugging_face` reads `config` again."""
    scaling = config.rope_scaling
    return {
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        _SCALING: scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied_embeddings,
    }


def from_meta(params: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Read Meta's `params.json`; raises WeightsError naming `source`.

    The feed-forward size is computed as Meta's code does: two thirds of four times
    the width, times the multiplier, rounded up to `multiple_of`.
    """
    fields = _Fields(params, source=source)
    dim, n_heads = fields.whole("dim"), fields.whole("n_heads")
    hidden = int(2 * 4 * dim / 3)
    hidden = int(fields.decimal("ffn_dim_multiplier", 1.0) * hidden)
    multiple = fields.whole("multiple_of", 256)
    scaled = bool(fields.get("use_scaled_rope", False))
    if params.get("vocab_size") == -1:
        # Meta's own files leave it to the tokenizer.
        raise fields.error("vocab_size", -1, "write the number of tokens")
    with _naming(source):
        return ModelConfig(
            dim=dim,
            n_layers=fields.whole("n_layers"),
            n_heads=n_heads,
            n_kv_heads=fields.whole("n_kv_heads", n_heads),
            intermediate_size=multiple * ((hidden + multiple - 1) // multiple),
            vocab_size=fields.whole("vocab_size"),
            head_dim=dim // n_heads,
            norm_eps=fields.decimal("norm_eps", 1e-5),
            rope_base=fields.decimal("rope_theta", 10000.0),
            rope_scaling=RopeScaling(factor=8.0) if scaled else None,
            context=131072 if scaled else 2048,
        )


@contextmanager
def _naming(source: str) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise WeightsError(f"{source}: {error}") from None
