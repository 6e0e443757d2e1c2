"""The shape of a Llama model.

Knows neither tensors nor files: presets are in `presets`, and `config.json` and its
like are read in `llama_perf.checkpoints.config`.
"""

import math
from dataclasses import dataclass, fields

from llama_perf.errors import SpecError


def check_whole(field: str, value: object) -> None:
    """Raise SpecError unless `value` is a whole number of 1 or more."""
    if type(value) is not int or value < 1:
        raise SpecError(field, value, "allowed: a whole number, 1 or more")


def check_number(field: str, value: object) -> None:
    """Raise SpecError unless `value` is a number above 0."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SpecError(field, value, "allowed: a number, more than 0")


def _check_fields(record: "ModelConfig | RopeScaling") -> None:
    for field in fields(record):
        value = getattr(record, field.name)
        if field.type is int:
            check_whole(field.name, value)
        elif field.type is float:
            check_number(field.name, value)


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
