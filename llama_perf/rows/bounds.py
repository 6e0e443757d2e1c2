"""What the numbers of a row may be: one table, which rows and `generate` share.

The bounds lie far above what a row asks for. Within them every number of bytes and
every index fits 64 bits, so that a row too large for a machine is refused by its
predicted memory.
"""

import unicodedata
from dataclasses import dataclass

from llama_perf.errors import SpecError

MAX_POSITIONS = 2**22
"""Of one sequence: the longest context that a Llama was trained for has as many."""
MAX_TOKENS = 2**30
"""Positions of all sequences of a batch: a cache of 8 billion parameters takes 140 TB.
"""
MAX_NAME = 4096
"""Characters of a model's name, which may be a path: Linux opens no longer one."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the largest value, and what is said beside them."""

    least: float
    most: float
    remark: str = ""

    @property
    def allowed(self) -> str:
        """Both in words."""
        return f"allowed: {self.least:g} to {self.most}{self.remark}"


_POSITIONS = Bounds(1, MAX_POSITIONS)
BOUNDS = {
    "prompt_length": _POSITIONS,
    "prefill_size": _POSITIONS,
    "max_new_tokens": _POSITIONS,
    "prefill_chunk": _POSITIONS,
    "cache_size": _POSITIONS,
    "fill": Bounds(0, MAX_POSITIONS),
    "tensor_parallel": Bounds(1, 8),
    # Sequences that a GPU decodes at once are hundreds.
    "batch_size": Bounds(1, 2**16),
    # Each is kept in the result. A spread of a thousandth takes some hundreds.
    "num_samples": Bounds(1, 10_000),
    # torch draws from at most as many; the largest vocabularies have 2**18.
    "top_k": Bounds(1, 2**24, ", or none at all"),
    # Logits divided by more are all equal in float16.
    "temperature": Bounds(0, 1000, "; 0 is greedy"),
}


def check_bounds(field: str, value: float | None) -> None:
    """Raise SpecError unless `value` is within the bounds of `field`, or is None."""
    bounds = BOUNDS[field]
    # NaN is within none.
    if value is not None and not bounds.least <= value <= bounds.most:
        raise SpecError(field, value, bounds.allowed)


def check_sampling(*, temperature: float, top_k: int | None) -> None:
    """Raise SpecError unless tokens can be sampled with these values."""
    check_bounds("top_k", top_k)
    check_bounds("temperature", temperature)


def check_model_name(name: str) -> None:
    """Raise SpecError unless a model can have this name in an id and in a path."""
    hidden = {"Cc", "Cs", "Zl", "Zp"}
    is_one_line = not any(unicodedata.category(char) in hidden for char in name)
    if not name or name != name.strip() or not is_one_line or len(name) > MAX_NAME:
        allowed = "a preset's or checkpoint's name, in one line of at most"
        shown = name if len(name) <= MAX_NAME else f"{name[:40]}..."
        raise SpecError("model", shown, f"{allowed} {MAX_NAME} characters")
