"""Records, which are read from JSON strictly, and plain values of JSON and TOML.

An unknown or missing field, a wrong type, NaN, a truncated file or one nested too
deeply is an error that names the file and the dotted field. Knows no record in
particular.
"""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from llama_perf import file_kinds
from llama_perf.errors import RecordError, UserError
from llama_perf.files import read_bytes
from llama_perf.words import shown

T = TypeVar("T")
ErrorKind = type[UserError]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field,)
)
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that `from_json` reads strictly."""
    cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined] # pydantic's name
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)


def to_json(document: Any) -> str:
    """One JSON document of a record, laid out for a diff.

    A field that is None by default is left out if it is None; a list of numbers is on
    one line. A number that is not finite is a bug of ours: ValueError.
    """
    text = json.dumps(document, default=_sparse, indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text) + "\n"


def to_line(document: Any) -> str:
    """The same document on one line."""
    return json.dumps(document, default=_sparse, allow_nan=False)


_NUMBERS = re.compile(r"\[\s+(?:-?[\d.eE+-]+,?\s+)+\]")


def _sparse(value: Any) -> Any:
    """What JSON has no form for, as what it has one for."""
    if isinstance(value, Enum):
        return value.value
    return {
        one.name: getattr(value, one.name)
        for one in fields(value)
        if one.default is not None or getattr(value, one.name) is not None
    }


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def from_json(
    kind: type[T], text: str | bytes, *, source: str, error: ErrorKind = RecordError
) -> T:
    """Read a record strictly; raises `error` that names `source` and the field."""
    if not text.strip():
        raise error(f"{source}: {_EMPTY}")
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_json(text))
    except ValidationError as problem:
        raise error(f"{source}: {_first_problem(problem)}") from None
    except RecursionError:
        raise error(f"{source}: {_TOO_DEEP}") from None


def read_json(kind: type[T], path: Path, *, error: ErrorKind = RecordError) -> T:
    """Read a record from a file; raises `error` that names it and the field."""
    text = read_bytes(path, error=error)
    return from_json(kind, text, source=str(path), error=error)


def from_plain(
    kind: type[T], data: object, *, source: str, error: ErrorKind = RecordError
) -> T:
    """The same for values that a TOML or JSON parser gave."""
    try:
        text = json.dumps(data, default=str)
    except RecursionError:
        raise error(f"{source}: {_TOO_DEEP}") from None
    except ValueError as problem:
        # TOML writes an integer of any length in hexadecimal digits.
        raise error(f"{source}: {problem}") from None
    return from_json(kind, text, source=source, error=error)


_TOO_DEEP, _EMPTY = "it is nested too deeply", "the file is empty"


def parse_json(
    text: str | bytes, *, source: str, error: ErrorKind = RecordError
) -> Any:
    """The plain values of a JSON document; raises `error` that names `source`."""
    if not text.strip():
        raise error(f"{source}: {_EMPTY}")
    return _parsed(lambda: json.loads(text), "JSON", source=source, error=error)


def parse_toml(
    text: str, *, source: str, error: ErrorKind = RecordError
) -> dict[str, Any]:
    """The tables of a TOML document; raises `error` that names `source`."""
    return _parsed(lambda: tomllib.loads(text), "TOML", source=source, error=error)


def _parsed(parse: Callable[[], T], form: str, *, source: str, error: ErrorKind) -> T:
    try:
        return parse()
    except RecursionError:
        raise error(f"{source}: {_TOO_DEEP}") from None
    # Among them UnicodeDecodeError, and an integer of thousands of digits.
    except ValueError as problem:
        raise error(f"{source}: Invalid {form}: {problem}") from None


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")
_TYPES = (("bool",), ("str",), ("int",), ("float",))
# A list, a map or a record of ours, as one of a field's several types.
_INNER = re.compile(r"(list|dict|tuple)\[.+\]|_[A-Z]\w+")
# What each of pydantic's errors misses, in words.
_WANTED = {
    "bool_type": "true or false",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
}
# Of a value that is shown.
_LONGEST = 60


def _field(problem: ErrorDetails) -> tuple[int | str, ...]:
    """Where it is. Of a field with several types each of them is a problem."""
    place = tuple(part for part in problem["loc"] if not _INNER.fullmatch(str(part)))
    return place[:-1] if place[-1:] in _TYPES else place


def _wanted(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Input should be ")
    return _WANTED.get(problem["type"], message)


def _other_kind(problems: list[ErrorDetails]) -> str | None:
    """What the whole file is, where it is none of the kind that is read."""
    if problems[0]["type"] == "json_invalid":
        text = problems[0]["input"]
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return file_kinds.described_text(text)
    wrong = {str(problem["loc"][0]): problem for problem in problems if problem["loc"]}
    return file_kinds.described({name: one["input"] for name, one in wrong.items()})


def _newer_version(problems: list[ErrorDetails]) -> str | None:
    """What to do with a file of a newer version, whose fields are not to be judged."""
    for problem in problems:
        version, allowed = problem["input"], _wanted(problem)
        if problem["loc"] != ("schema_version",) or not isinstance(version, int):
            continue
        if version > max(map(int, re.findall(r"\d+", allowed)), default=version):
            return (
                f"schema_version: {shown(version)} is not allowed; allowed: {allowed};"
                " a newer llama-perf wrote it: update this one, or read it with that"
                " one"
            )
    return None


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    for whole in (_other_kind(problems), _newer_version(problems)):
        if whole is not None:
            return whole
    # A misspelt field is both unknown and missing. The unknown name says more.
    first = min(problems, key=lambda problem: problem["type"] not in _UNKNOWN)
    field = _field(first)
    dotted = ".".join(str(part) for part in field)
    wording = dict.fromkeys(_UNKNOWN, "unknown field")
    wording |= dict.fromkeys(_MISSING, "the field is missing")
    wording |= dict.fromkeys(("value_error", "json_invalid"), first["msg"])
    text = wording.get(first["type"], "").removeprefix("Value error, ")
    if "recursion limit" in text:
        text = _TOO_DEEP
    if not text:
        same = [problem for problem in problems if _field(problem) == field]
        allowed = " or ".join(dict.fromkeys(map(_wanted, same)))
        value = shown(first["input"])
        if len(value) > _LONGEST:
            value = f"{value[: _LONGEST - 3]}..."
        text = f"{value} is not allowed; allowed: {allowed}"
    others = len({_field(problem) for problem in problems}) - 1
    more = f" (and {others} more)" if others else ""
    return f"{dotted}: {text}{more}" if dotted else f"{text}{more}"
