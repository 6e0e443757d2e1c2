"""The tokenizer's fields of a GGUF file, as plain values. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_perf.errors import TokenizerError
from llama_perf.gguf_reader import BoundedReader


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The fields `tokenizer.*` as Python's own values; raises TokenizerError."""
    try:
        reader = BoundedReader(path)
        return {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith("tokenizer.")
        }
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        raise TokenizerError(
            f"{path}: damaged, truncated, or no GGUF file of version 2 or 3"
        ) from None
