"""The tokenizer's fields of a GGUF file: read, and copied. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter

from llama_perf.checkpoints.gguf_reader import BoundedReader
from llama_perf.errors import TokenizerError

_PREFIX = "tokenizer."


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The fields `tokenizer.*` as Python's own values; raises TokenizerError."""
    return {name: value for name, value, _ in _fields(path)}


def copy_tokenizer_fields(path: Path, target: Path) -> None:
    """Write a GGUF file of these fields alone, without weights.

    Raises TokenizerError for a damaged `path`, OSError where `target` fails.
    """
    fields = _fields(path)
    writer = GGUFWriter(target, "llama")
    for name, value, types in fields:
        # An empty list has no form there, and says as little as none.
        if value != []:
            inner = types[-1] if types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, types[0], sub_type=inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _fields(path: Path) -> list[tuple[str, Any, list[GGUFValueType]]]:
    try:
        reader = BoundedReader(path)
        return [
            (name, field.contents(), field.types)
            for name, field in reader.fields.items()
            if name.startswith(_PREFIX)
        ]
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        raise TokenizerError(
            f"{path}: damaged, truncated, or no GGUF file of version 2 or 3"
        ) from None
