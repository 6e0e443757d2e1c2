"""The configuration beside a checkpoint: `config.json`, `params.json`, a preset.

Knows which file is read first, and the fields of Hugging Face's and of Meta's files.
An error is one line that names the file and the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_perf.errors import SpecError, WeightsError
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.presets import PRESETS, preset_name

# Fields of a config.json that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "quantization_config": (None,),
}


def folder_config(folder: Path) -> tuple[ModelConfig, str]:
    """The configuration of a `model.pth` in `folder`, and where it was found.

    From `config.json` (Hugging Face), else `params.json` (Meta), else the preset that
    the folder's name means. Raises WeightsError.
    """
    for name, read in (("config.json", hugging_face_config), ("params.json", _meta)):
        if (folder / name).is_file():
            return read(folder / name), name
    name = folder.absolute().name
    if (known := preset_name(name)) is not None:
        return PRESETS[known], f"the preset {known}, from the folder's name,"
    raise WeightsError(
        f"{folder}: the configuration is missing; allowed: config.json, params.json,"
        f" or a folder named after one of the presets {', '.join(PRESETS)}"
    )


def hugging_face_config(path: Path) -> ModelConfig:
    """Read a Hugging Face `config.json`; raises WeightsError."""
    fields = read_json(path)
    for name, allowed in _ALLOWED.items():
        if name in fields and fields[name] not in allowed:
            raise WeightsError(
                f"{path}: {name} {_short(fields[name])} is not allowed;"
                f" allowed: {json.dumps(allowed[0])}"
            )
    return from_hugging_face(fields, source=str(path))


def _meta(path: Path) -> ModelConfig:
    return from_meta(read_json(path), source=str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises WeightsError."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{path}: it is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise WeightsError(f"{path}: {_short(fields)} is not allowed; allowed: a map")
    return fields


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
