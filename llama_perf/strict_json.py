"""Records as JSON, strictly, and files replaced at once.

An unknown or missing field, a wrong type, NaN or a truncated file is a RecordError
that names the file and the dotted field. Knows no record in particular.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llama_perf.errors import RecordError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

T = TypeVar("T")


def to_json(record: Any) -> str:
    """One JSON document of a record, laid out for a diff.

    What is None by default is left out, and a list of numbers stands on one line. A
    non-finite number is an error of ours.
    """
    text = json.dumps(_sparse(record), indent=2, default=_plain, allow_nan=False)
    return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text) + "\n"


def to_line(record: Any) -> str:
    """The same document on one line."""
    return json.dumps(_sparse(record), default=_plain, allow_nan=False)


_NUMBERS = re.compile(r"\[\s+(?:-?[\d.eE+-]+,?\s+)+\]")


def _sparse(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _sparse(getattr(value, field.name))
            for field in fields(value)
            if field.default is not None or getattr(value, field.name) is not None
        }
    if isinstance(value, list | tuple):
        return [_sparse(each) for each in value]
    if isinstance(value, dict):
        return {key: _sparse(each) for key, each in value.items()}
    return value


def _plain(value: Any) -> Any:
    assert isinstance(value, Enum), f"{type(value).__name__} has no JSON form"
    return value.value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def from_json(kind: type[T], text: str | bytes, *, source: str) -> T:
    """Read a record strictly; raises RecordError naming `source` and the field."""
    try:
        record: T = _adapter(cast(Any, kind)).validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{source}: {_first_problem(error)}") from None
    return record


def from_plain(kind: type[T], data: object, *, source: str) -> T:
    """The same for what TOML or JSON gave as plain values."""
    return from_json(kind, json.dumps(data, default=str), source=source)


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    # A misspelt field is both unknown and missing: the unknown one says more.
    first = min(problems, key=lambda problem: problem["type"] not in _UNKNOWN)
    field = ".".join(str(part) for part in first["loc"])
    wording = dict.fromkeys(_UNKNOWN, "unknown field")
    wording |= dict.fromkeys(_MISSING, "the field is missing")
    text = wording.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] not in wording and first["type"] != "value_error":
        shown = repr(first["input"])
        text += f" (got {shown if len(shown) <= 60 else shown[:57] + '...'})"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {text}{more}" if field else f"{text}{more}"


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
