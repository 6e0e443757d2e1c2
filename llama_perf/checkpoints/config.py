"""A model's shape in `config.json`, `params.json`, and under other fields' names.

Knows which of the files next to a checkpoint is read first. An error is one line that
names the source and the field.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llama_perf import strict_json
from llama_perf.errors import SpecError, WeightsError
from llama_perf.files import is_absent
from llama_perf.llama.config import (
    PRESETS,
    ModelConfig,
    RopeScaling,
    check_number,
    check_whole,
    preset_name,
)
from llama_perf.words import shown

# Our fields in a Hugging Face `config.json`, and in a GGUF file after `llama.`.
_FIELDS = {
    "dim": ("hidden_size", "embedding_length"),
    "n_layers": ("num_hidden_layers", "block_count"),
    "n_heads": ("num_attention_heads", "attention.head_count"),
    "n_kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "intermediate_size": ("intermediate_size", "feed_forward_length"),
    "vocab_size": ("vocab_size", "vocab_size"),
    "head_dim": ("head_dim", "attention.key_length"),
    "norm_eps": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    "rope_base": ("rope_theta", "rope.freq_base"),
    "context": ("max_position_embeddings", "context_length"),
}
_HUGGING_FACE = {ours: name for ours, (name, _) in _FIELDS.items()}
_HUGGING_FACE["tied_embeddings"] = "tie_word_embeddings"
GGUF_FIELDS = {ours: f"llama.{name}" for ours, (_, name) in _FIELDS.items()}
_ROPE_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
_META_NAMES = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps")
_META = {name: name for name in (*_META_NAMES, "multiple_of", "ffn_dim_multiplier")}
_META |= {"rope_base": "rope_theta"}
_REQUIRED = {
    *("dim", "n_layers", "n_heads", "intermediate_size", "vocab_size", "context"),
    *_ROPE_SCALING,
}
# Fields of a config.json that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama", "mistral"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "quantization_config": (None,),
}
_ALLOWED_ROPE = {"rope_type": ("default", "llama3")}
T = TypeVar("T")


def folder_config(
    folder: Path, *, vocab_size: Callable[[], int]
) -> tuple[ModelConfig, str]:
    """The configuration of a `model.pth` in `folder`, and where it was found.

    From `config.json` (Hugging Face), else `params.json` (Meta), else the preset that
    the folder's name means. Meta's say -1 for the vocabulary of Llama 1 and 2, which
    `vocab_size` then tells from the weights. Raises WeightsError.
    """
    for name, read in (("config.json", from_hugging_face), ("params.json", from_meta)):
        if not is_absent(folder / name):
            fields, source = read_json(folder / name), str(folder / name)
            if read is from_meta and fields.get("vocab_size") == -1:
                fields["vocab_size"] = vocab_size()
            return read(fields, source=source), name
    if (known := preset_name(folder.absolute().name)) is not None:
        return PRESETS[known], f"the preset {known}, from the folder's name,"
    raise WeightsError(
        f"{folder}: the configuration is missing; allowed: config.json, params.json,"
        f" or a folder named after one of the presets {', '.join(PRESETS)}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises WeightsError."""
    return strict_json.read_json(dict[str, Any], path, error=WeightsError)


def check_allowed(
    fields: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]], *, source: str
) -> None:
    """Raise WeightsError for a field that is there with a value that is not allowed."""
    for name, values in allowed.items():
        if (value := fields.get(name)) is not None and value not in values:
            raise WeightsError(
                f"{source}: {name}: {shown(value)} is not allowed; allowed:"
                f" {', '.join(map(repr, values))}"
            )


def read_config(
    make: Callable[..., T],
    fields: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    source: str,
    **defaults: Any,
) -> T:
    """`make` of the values in `fields`, which have the names `names[own name]` there.

    One that is missing or null has its default. Raises WeightsError.
    """
    for ours, theirs in names.items():
        if (value := fields.get(theirs)) is not None:
            defaults[ours] = value
        elif ours in _REQUIRED and defaults.get(ours) is None:
            raise WeightsError(f"{source}: the field {theirs!r} is missing")
    try:
        return make(**defaults)
    except SpecError as error:
        field = names.get(error.field, error.field)
        problem = str(error).removeprefix(error.field)
        raise WeightsError(f"{source}: {field}{problem}") from None


def model_config(
    *,
    dim: int,
    n_heads: int,
    multiple_of: int = 256,
    ffn_dim_multiplier: float = 1.0,
    **rest: Any,
) -> ModelConfig:
    """A ModelConfig in which missing sizes are those of Meta's code."""
    sizes = {"dim": dim, "n_heads": n_heads, "multiple_of": multiple_of}
    for name, size in sizes.items():
        check_whole(name, size)
    check_number("ffn_dim_multiplier", ffn_dim_multiplier)
    # Two thirds of four times the width, rounded up after the multiplier.
    hidden = int(ffn_dim_multiplier * int(2 * 4 * dim / 3))
    derived = {
        "n_kv_heads": n_heads,
        "head_dim": dim // n_heads,
        "intermediate_size": -(-hidden // multiple_of) * multiple_of,
    }
    return ModelConfig(dim=dim, n_heads=n_heads, **derived | rest)


def from_hugging_face(fields: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Read a Hugging Face `config.json`; raises WeightsError naming `source`."""
    check_allowed(fields, _ALLOWED, source=source)
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
    key = "rope_parameters" if "rope_parameters" in fields else "rope_scaling"
    rope, where = fields.get(key) or {}, f"{source}: {key}"
    if not isinstance(rope, Mapping):
        raise WeightsError(f"{where}: {shown(rope)} is not allowed; allowed: a map")
    kind = rope.get("rope_type", rope.get("type"))
    check_allowed({"rope_type": kind}, _ALLOWED_ROPE, source=where)
    scaling = None
    if kind == "llama3":
        scaling = read_config(RopeScaling, rope, _ROPE_SCALING, source=where)
    return read_config(
        model_config,
        fields,
        _HUGGING_FACE,
        source=source,
        norm_eps=1e-6,
        rope_base=rope.get("rope_theta", 10000.0),
        rope_scaling=scaling,
        context=2048,
    )


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` from which `from_hugging_face` reads `config` again."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _HUGGING_FACE.items()}
    if scaling := config.rope_scaling:
        names = _ROPE_SCALING.items()
        rope = {theirs: getattr(scaling, ours) for ours, theirs in names}
        fields["rope_scaling"] = {"rope_type": "llama3", **rope}
    return {"model_type": "llama", **fields}


def from_meta(fields: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Read Meta's `params.json`; raises WeightsError naming `source`."""
    llama31 = {"rope_scaling": RopeScaling(factor=8.0), "context": 131072}
    defaults = llama31 if fields.get("use_scaled_rope") else {}
    return read_config(model_config, fields, _META, source=source, **defaults)
