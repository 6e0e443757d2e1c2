"""Where a model's weights come from and what was done to them.

A record that travels with a model, so that whoever saves or measures it can say what
it is. Knows no tensors and no files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """`weights` as a reader's `source`; scheme and kernels None where unquantized.

    The weights are those before quantization: "synthetic", "gguf:<file>", ...
    """

    weights: str
    scheme: str | None = None
    kernels: str | None = None

    @property
    def told(self) -> str:
        """In a few words: "int8wo, native, from gguf:model.gguf"."""
        parts = [part for part in (self.scheme, self.kernels) if part is not None]
        return ", ".join([*parts, f"from {self.weights}"])
