"""Fields of a configuration that say one thing in two ways, and whether they agree.

A field claims a value of a quantity: `rope_theta` the base of the rotation, as does
`rope_theta` inside `rope_parameters`. Readers of such files take one and ignore the
other, each reader its own: where two claims differ nobody knows which model it is.
Knows no model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from llama_perf.errors import WeightsError
from llama_perf.files import read_bytes
from llama_perf.words import shown


class Claim(NamedTuple):
    """A field, what it has, and the value of the quantity that this means."""

    field: str
    stated: object
    value: object


Meaning = Callable[[Any, Mapping[str, Any]], object]
"""The quantity's value by a field's and by all fields; None where it has none."""


def _as_it_is(stated: Any, _fields: Mapping[str, Any]) -> object:
    return stated


def _list(stated: Any, _fields: Mapping[str, Any]) -> object:
    return stated if isinstance(stated, list) else None


def _length(stated: Any, _fields: Mapping[str, Any]) -> object:
    return len(stated) if isinstance(stated, list) else None


def _every_nth(stated: Any, fields: Mapping[str, Any]) -> object:
    """The layers, 1 where a layer rotates, of which each `stated`-th does not."""
    layers = fields.get("num_hidden_layers")
    if type(stated) is not int or type(layers) is not int or stated < 1:
        return None
    return [int((index + 1) % stated != 0) for index in range(min(layers, _MOST))]


def _class_type(stated: Any, _fields: Mapping[str, Any]) -> object:
    """The `model_type` of the classes, such as LlamaForCausalLM."""
    if not isinstance(stated, list) or len(stated) != 1:
        return None
    name, head, _ = str(stated[0]).partition("For")
    return name.lower() if head else None


def _dtype_name(stated: Any, _fields: Mapping[str, Any]) -> object:
    return str(stated).removeprefix("torch.")


# More layers than any model has.
_MOST = 1000
_ROPE_MAPS = ("rope_parameters", "rope_scaling")


def _in_rope(*names: str) -> dict[str, Meaning]:
    return {f"{top}.{name}": _as_it_is for top in _ROPE_MAPS for name in names}


def _same(*names: str) -> dict[str, Meaning]:
    return dict.fromkeys(names, _as_it_is)


_QUANTITIES: tuple[Mapping[str, Meaning], ...] = (
    {"model_type": _as_it_is, "architectures": _class_type},
    {"dtype": _dtype_name, "torch_dtype": _dtype_name},
    _same("hidden_size", "n_embd", "d_model", "dim"),
    {
        **_same("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "layer_types": _length,
        "no_rope_layers": _length,
    },
    _same("num_attention_heads", "n_head", "n_heads", "num_heads"),
    _same("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    _same("head_dim", "kv_channels", "d_head", "attention_head_dim"),
    _same("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    _same("vocab_size", "n_vocab", "padded_vocab_size"),
    _same("rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon"),
    _same("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
    _same("hidden_act", "hidden_activation", "activation_function"),
    _same("tie_word_embeddings", "tied_embeddings"),
    _same("attention_bias", "qkv_bias"),
    _same("sliding_window", "sliding_window_size", "attention_window_size"),
    {**_same("rope_theta", "rope_base", "rotary_emb_base"), **_in_rope("rope_theta")},
    _in_rope("rope_type", "type"),
    _in_rope("factor"),
    _in_rope("low_freq_factor"),
    _in_rope("high_freq_factor"),
    {
        **_same("original_max_position_embeddings"),
        **_in_rope("original_max_position_embeddings"),
    },
    {**_same("partial_rotary_factor"), **_in_rope("partial_rotary_factor")},
    {"no_rope_layers": _list, "no_rope_layer_interval": _every_nth},
)
FIELDS = {name for quantity in _QUANTITIES for name in quantity if "." not in name}
"""The fields that may stand beside others that say the same."""


def check_fields(fields: Mapping[str, Any], *, source: str) -> None:
    """Raise WeightsError where two fields of a `config.json` contradict each other."""
    for quantity in _QUANTITIES:
        claims = [
            Claim(name, stated, value)
            for name, meaning in quantity.items()
            if (stated := _at(fields, name)) is not None
            and (value := meaning(stated, fields)) is not None
        ]
        check_claims(claims, source=source)


def _at(fields: Mapping[str, Any], name: str) -> Any:
    top, _, inner = name.partition(".")
    value = fields.get(top)
    if not inner:
        return value
    return value.get(inner) if isinstance(value, Mapping) else None


def check_keys(path: Path) -> None:
    """Raise WeightsError where a JSON file has a key twice, with two values."""

    def no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made and made[name] != value:
                both = [Claim(name, stated, stated) for stated in (made[name], value)]
                check_claims(both, source=str(path))
            made[name] = value
        return made

    text = read_bytes(path, error=WeightsError)
    try:
        json.loads(text, object_pairs_hook=no_twice)
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        # What is no JSON was refused before.
        pass


def check_claims(claims: Sequence[Claim], *, source: str) -> None:
    """Raise WeightsError, naming both, where two claims differ."""
    for first, other in pairwise(claims):
        if first.value != other.value:
            raise WeightsError(
                f"{source}: {first.field}: {shown(first.stated)} contradicts"
                f" {other.field}: {shown(other.stated)}; correct or remove one of them"
            )
