"""The kinds of models that are read, by `model_type`: what each has and may have.

Knows Hugging Face's fields and llama.cpp's names; neither files nor tensors.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from llama_perf.checkpoints.contradictions import FIELDS, Claim, check_claims
from llama_perf.errors import WeightsError
from llama_perf.words import shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A kind of models.

    `defaults` are what fields of a `config.json` that are not there mean, and `allowed`
    the values of those that would change the computation otherwise. `parts` are fields
    of ModelConfig that every such model has. With `rotates_halves` llama.cpp keeps the
    rows of queries and keys in Hugging Face's order. Of `windows` layers "all" have a
    window, those from `max_window_layers` on ("late"), those without RoPE ("nope"), or
    none has (None). Of a GGUF file each `nope_step`-th layer rotates nothing.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    allowed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    parts: Mapping[str, bool] = field(default_factory=dict)
    rotates_halves: bool = False
    windows: str | None = None
    nope_step: int = 0


_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32}
_LATE = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_NO_BIAS: dict[str, tuple[object, ...]] = {"mlp_bias": (False,)}
_BIAS = ("attention_bias", "mlp_bias")
ARCHITECTURES = {
    "llama": Architecture(defaults={"max_position_embeddings": 2048}),
    "mistral": Architecture(
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        allowed=dict.fromkeys(_BIAS, (False,)),
        windows="all",
    ),
    "qwen2": Architecture(
        defaults=_QWEN | _LATE,
        allowed=_NO_BIAS | {"attention_bias": (True,)},
        parts={"qkv_bias": True, "output_bias": False},
        rotates_halves=True,
        windows="late",
    ),
    "qwen3": Architecture(
        defaults=_QWEN | _LATE | {"head_dim": 128},
        allowed=_NO_BIAS,
        parts={"qk_norm": True},
        rotates_halves=True,
        windows="late",
    ),
    "smollm3": Architecture(
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
        },
        windows="nope",
        nope_step=4,
    ),
}
"""By `model_type`, which is llama.cpp's `general.architecture` too.

A Mistral is a llama there.
"""
GGUF_ARCHITECTURES = tuple(name for name in ARCHITECTURES if name != "mistral")

# Fields that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0,),
    **dict.fromkeys(("logits_scaling", "logit_scale"), (1.0,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), (1.0,)),
}
_KNOWN = {
    *("hidden_size", "intermediate_size", "vocab_size", "head_dim", "rms_norm_eps"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("rope_parameters", "rope_scaling", "rope_theta", "layer_types", "use_cache"),
    *("sliding_window", "use_sliding_window", "max_window_layers"),
    *("attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"),
    # These change nothing here: how it was trained, run, or split onto cards.
    *("pretraining_tp", "initializer_range", "attention_dropout", "tokenizer_class"),
    *("attn_implementation", "layerdrop", "chunk_size_feed_forward"),
    *FIELDS,
}
_HARMLESS = re.compile(
    r"_.*|output_.*|.*_token_id|.*_token|.*dropout|.*pdrop|llama_perf.*"
)
# What a field of the computation is named after.
_COMPUTES = re.compile(
    r"(?:^|[^a-z])(?:scal|multiplier|softcap|cap(?![a-z])|bias|norm|rope|rotary|mrope"
    r"|positions?(?![a-z])|window|attn|attention|act(?![a-z])|activation|expert|moe"
    r"|residual|alibi|mask|layers?(?![a-z])|heads?(?![a-z])|logit|sink|router|chunk"
    r"|interleave|qk|query|clip|sliding|lora|mlp|ffn|quantization|vision|yarn|alpha)"
)
_SAYS_NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})


def architecture(fields: Mapping[str, Any], *, source: str) -> Architecture:
    """The architecture of a `config.json`; raises WeightsError for one that is none.

    Also for a field that would change the computation and is not known here.
    """
    kinds: Any = fields.get("architectures")
    kind = fields.get("model_type")
    if kind is None:
        named = isinstance(kinds, list) and kinds
        kind = str(kinds[0]).partition("For")[0].lower() if named else "llama"
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        allowed = ", ".join(map(repr, ARCHITECTURES))
        problem = f"{shown(kind)} is not allowed; allowed: {allowed}"
        raise WeightsError(f"{source}: model_type: {problem}")
    found = ARCHITECTURES[kind]
    allowed_values = {**_ALLOWED, **found.allowed}
    if found.windows is None and fields.get("use_sliding_window") is not False:
        allowed_values["sliding_window"] = (None,)
    check_allowed(fields, allowed_values, source=source)
    check_unknown(fields, {*_KNOWN, *allowed_values}, f"model of {kind}", source=source)
    return found


def check_unknown(
    fields: Mapping[str, Any], known: Set[str], what: str, *, source: str
) -> None:
    """Raise WeightsError for a field that may change the computation.

    It is one that is not `known`, says something, and is named like such a field.
    """
    for name, value in fields.items():
        harmless = name in known or _HARMLESS.fullmatch(name)
        if harmless or value in _SAYS_NOTHING or not _COMPUTES.search(name.lower()):
            continue
        raise WeightsError(
            f"{source}: {name}: {shown(value)} is not allowed; no {what} has this field"
            " here, and it may change what is computed; allowed: null, or leave it out"
        )


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


def check_layers(value: Any, kinds: tuple[Any, ...], field: str, source: str) -> None:
    """Raise WeightsError unless it is a list of such kinds."""
    if not isinstance(value, list) or not all(one in kinds for one in value):
        allowed = f"allowed: a list of {' and '.join(map(shown, kinds))}"
        raise WeightsError(
            f"{source}: {field}: {shown(value)} is not allowed; {allowed}"
        )


FULL, SLIDING = "full_attention", "sliding_attention"


def layers_without_rope(fields: Mapping[str, Any], *, source: str) -> tuple[int, ...]:
    """The layers that rotate nothing, by `no_rope_layers` or its interval.

    `fields` have the architecture's defaults. A 0 in the list is such a layer.
    """
    rotating, step = fields.get("no_rope_layers"), fields.get("no_rope_layer_interval")
    if rotating is not None:
        check_layers(rotating, (0, 1), "no_rope_layers", source)
        return tuple(layer for layer, rotates in enumerate(rotating) if not rotates)
    if step is None:
        return ()
    if type(step) is not int or step < 1:
        problem = f"{shown(step)} is not allowed; allowed: a whole number, 1 or more"
        raise WeightsError(f"{source}: no_rope_layer_interval: {problem}")
    return every_nth(step, fields.get("num_hidden_layers"))


def every_nth(step: int, layers: Any) -> tuple[int, ...]:
    """Each `step`-th of the layers, counted from 0; none of a number that is none."""
    count = layers if type(layers) is int else 0
    return tuple(range(step - 1, min(count, _MOST), step))


# More layers than any model has.
_MOST = 1000


def windows(
    fields: Mapping[str, Any],
    architecture: Architecture,
    nope_layers: tuple[int, ...],
    *,
    source: str,
) -> tuple[int | None, tuple[int, ...] | None]:
    """The sliding window, or None, and the layers that have it, None for all.

    `fields` have the architecture's defaults. Raises WeightsError where `layer_types`
    contradicts the fields that say the same.
    """
    size, types = fields.get("sliding_window"), fields.get("layer_types")
    off = architecture.windows != "all" and not fields.get("use_sliding_window")
    if architecture.windows is None or off:
        size = None
    count = fields.get("num_hidden_layers")
    if type(count) is not int:
        return size, None
    layers = tuple(range(min(count, _MOST)))
    first = fields.get("max_window_layers")
    named = "sliding_window"
    if off and architecture.windows is not None:
        named = "use_sliding_window"
    elif architecture.windows == "late" and size is not None:
        named = "max_window_layers"
        if type(first) is not int:
            problem = f"{shown(first)} is not allowed; allowed: a whole number"
            raise WeightsError(f"{source}: {named}: {problem}")
        layers = layers[max(first, 0) :]
    elif architecture.windows == "nope":
        named, layers = "no_rope_layers", nope_layers
    if size is None:
        layers = ()
    if types is not None:
        check_layers(types, (FULL, SLIDING), "layer_types", source)
        said = tuple(layer for layer, kind in enumerate(types) if kind == SLIDING)
        # Without a window these rules choose among no layers.
        if architecture.windows != "nope" or size is None:
            by_rule = Claim(named, fields.get(named), layers)
            check_claims([Claim("layer_types", types, said), by_rule], source=source)
        layers = said
    if not layers:
        return None, None
    return size, None if len(layers) == count else layers
