"""A model's shape in `config.json`, `params.json`, and under other fields' names.

Knows which of the files next to a checkpoint is read first. An error is one line that
names the source and the field.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llama_perf import strict_json
from llama_perf.checkpoints import architectures, contradictions
from llama_perf.checkpoints.architectures import FULL, SLIDING
from llama_perf.checkpoints.contradictions import Claim
from llama_perf.errors import SaveError, SpecError, WeightsError
from llama_perf.files import is_absent
from llama_perf.llama.config import (
    MAX_LAYERS,
    ModelConfig,
    RopeScaling,
    check_number,
    check_whole,
)
from llama_perf.llama.presets import PRESETS, preset_name
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
    "sliding_window": ("sliding_window", "attention.sliding_window"),
}
_HUGGING_FACE = {ours: name for ours, (name, _) in _FIELDS.items()}
# It is read with the fields that say which layers have it.
del _HUGGING_FACE["sliding_window"]
_HUGGING_FACE |= {
    "tied_embeddings": "tie_word_embeddings",
    "qkv_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}
_ROPE_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
_META_NAMES = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps")
_META = {name: name for name in (*_META_NAMES, "multiple_of", "ffn_dim_multiplier")}
# The last three are in Mistral's own files.
_META |= {
    "rope_base": "rope_theta",
    "head_dim": "head_dim",
    "intermediate_size": "hidden_dim",
    "sliding_window": "sliding_window",
}
_META_SCALING = {
    "factor": "rope_scaling_factor",
    "high_freq_factor": "rope_high_freq_factor",
}
_IMPLIED = "intermediate_size"
_META_KNOWN = {*_META.values(), *_META_SCALING.values(), "use_scaled_rope"}
_REQUIRED = {
    *("dim", "n_layers", "n_heads", "intermediate_size", "vocab_size", "context"),
    *_ROPE_SCALING,
}
_ROPE_NAMES = {
    *("rope_theta", "rope_type", "type", "partial_rotary_factor"),
    *_ROPE_SCALING.values(),
}
_ROPE_KINDS = {"rope_type": ("default", "llama3")}
T = TypeVar("T")


def gguf_fields(architecture: str) -> dict[str, str]:
    """Our fields' names in a GGUF file of an architecture."""
    return {ours: f"{architecture}.{name}" for ours, (_, name) in _FIELDS.items()}


def folder_config(
    folder: Path, *, vocab_size: Callable[[], int]
) -> tuple[ModelConfig, str]:
    """The configuration of a `model.pth` in `folder`, and where it was found.

    From `config.json` (Hugging Face), else `params.json` (Meta), else the preset that
    the folder's name means. Meta's say -1 for the vocabulary of Llama 1 and 2, which
    `vocab_size` then tells from the weights. Raises WeightsError.
    """
    if not is_absent(folder / "config.json"):
        return hugging_face_config(folder), "config.json"
    path = folder / "params.json"
    if not is_absent(path):
        fields = read_json(path)
        if fields.get("vocab_size") == -1:
            fields["vocab_size"] = vocab_size()
        return from_meta(fields, source=str(path)), path.name
    if (known := preset_name(folder.absolute().name)) is not None:
        return PRESETS[known], f"the preset {known}, from the folder's name,"
    raise WeightsError(
        f"{folder}: the configuration is missing; allowed: config.json, params.json,"
        f" or a folder named after one of the presets {', '.join(PRESETS)}"
    )


def hugging_face_config(folder: Path) -> ModelConfig:
    """The configuration in `config.json`.

    Raises WeightsError where a `params.json` in the folder says something else.
    """
    path, other = folder / "config.json", folder / "params.json"
    config = from_hugging_face(read_json(path), source=str(path))
    if is_absent(other):
        return config
    fields = read_json(other)
    if fields.get("vocab_size") == -1:
        fields["vocab_size"] = config.vocab_size
    meta = from_meta(fields, source=str(other))
    said = {ours for ours, theirs in _META.items() if fields.get(theirs) is not None}
    for ours in (*said & _FIELDS.keys(), _IMPLIED):
        claims = [
            Claim(f"{file.name}: {names.get(ours, ours)}", value, value)
            for file, names, read in (
                (path, _HUGGING_FACE, config),
                (other, _META, meta),
            )
            for value in (getattr(read, ours),)
        ]
        contradictions.check_claims(claims, source=str(folder))
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises WeightsError."""
    fields = strict_json.read_json(dict[str, Any], path, error=WeightsError)
    contradictions.check_keys(path)
    return fields


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
    contradictions.check_fields(fields, source=source)
    kind = architectures.architecture(fields, source=source)
    rope, scaling = _rope(fields, source)
    # A null is no default: it says that there is none.
    fields = {**kind.defaults, **fields}
    if "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
    _check_layer_count(fields, source)
    nope_layers = architectures.layers_without_rope(fields, source=source)
    window, layers = architectures.windows(fields, kind, nope_layers, source=source)
    return read_config(
        model_config,
        fields,
        _HUGGING_FACE,
        source=source,
        norm_eps=1e-6,
        rope_scaling=scaling,
        context=2048,
        sliding_window=window,
        window_layers=layers,
        nope_layers=nope_layers,
        **{"output_bias": fields.get("attention_bias") or False, **kind.parts},
    )


def _check_layer_count(fields: Mapping[str, Any], source: str) -> None:
    count = fields.get("num_hidden_layers")
    try:
        if count is not None:
            check_whole("num_hidden_layers", count, MAX_LAYERS)
    except SpecError as error:
        raise WeightsError(f"{source}: {error}") from None


def _rope(
    fields: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], RopeScaling | None]:
    """What `rope_scaling` and `rope_parameters` have together, and the scaling.

    transformers 5 moved `rope_theta` and `rope_scaling` into `rope_parameters`.
    """
    rope: dict[str, Any] = {}
    where = source
    for key in ("rope_scaling", "rope_parameters"):
        if not (own := fields.get(key)):
            continue
        where = f"{source}: {key}"
        if not isinstance(own, Mapping):
            raise WeightsError(f"{where}: {shown(own)} is not allowed; allowed: a map")
        for name, value in own.items():
            if name not in _ROPE_NAMES and value is not None:
                problem = f"{shown(value)} is not allowed; allowed:"
                names = ", ".join(sorted(_ROPE_NAMES))
                raise WeightsError(f"{where}: {name}: {problem} only {names}")
        rope |= {name: value for name, value in own.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type"))
    architectures.check_allowed({"rope_type": kind}, _ROPE_KINDS, source=where)
    one = {"partial_rotary_factor": (1.0,)}
    if kind == "llama3":
        architectures.check_allowed(rope, one, source=where)
        scaling = read_config(RopeScaling, rope, _ROPE_SCALING, source=where)
        return rope, scaling
    # What only a scaling reads would be ignored.
    scaled = ("factor", "low_freq_factor", "high_freq_factor")
    architectures.check_allowed(rope, one | dict.fromkeys(scaled, (1.0,)), source=where)
    return rope, None


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` from which `from_hugging_face` reads `config` again."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _HUGGING_FACE.items()}
    fields |= _layers_to_hugging_face(config)
    if scaling := config.rope_scaling:
        names = _ROPE_SCALING.items()
        rope = {theirs: getattr(scaling, ours) for ours, theirs in names}
        fields["rope_scaling"] = {"rope_type": "llama3", **rope}
    again = from_hugging_face(fields, source="config.json")
    if again != config:
        raise SaveError("no config.json describes a model with these parts")
    return fields


def _layers_to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The type of a model that has these parts, and its fields about layers."""
    layers = range(config.n_layers)
    types = [FULL if config.window(layer) is None else SLIDING for layer in layers]
    fields: dict[str, Any] = {}
    if config.nope_layers:
        kind = "smollm3"
        fields["no_rope_layers"] = [int(i not in config.nope_layers) for i in layers]
    elif config.qk_norm:
        kind = "qwen3"
    elif config.qkv_bias and not config.output_bias:
        kind = "qwen2"
    else:
        kind = "llama" if config.sliding_window is None else "mistral"
    if kind == "mistral":
        return {"model_type": kind, "sliding_window": config.sliding_window}
    if kind != "llama":
        fields["use_sliding_window"] = config.sliding_window is not None
        fields["sliding_window"] = config.sliding_window
        fields["layer_types"] = types
    if kind.startswith("qwen"):
        fields["max_window_layers"] = types.count(FULL)
    return {"model_type": kind, **fields}


def from_meta(fields: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Read Meta's `params.json`; raises WeightsError naming `source`."""
    architectures.check_unknown(fields, _META_KNOWN, "params.json", source=source)
    architectures.check_allowed(
        fields, {"use_scaled_rope": (False, True)}, source=source
    )
    defaults: dict[str, Any] = {}
    if fields.get("use_scaled_rope"):
        # Llama 3.1's file says no more: Meta's code has its factors.
        own = {"factor": 8.0, "high_freq_factor": 4.0}
        names = _META_SCALING
        scaling = read_config(RopeScaling, fields, names, source=source, **own)
        defaults = {"rope_scaling": scaling, "context": 131072}
    names = {ours: own for ours, own in _META.items() if fields.get(own) is not None}
    # A size that is not there is missing, but for those that others imply.
    names |= {ours: _META[ours] for ours in _META.keys() & _REQUIRED - {_IMPLIED}}
    return read_config(model_config, fields, names, source=source, **defaults)
