"""Limits that a user sets for a metric, for all rows or for some.

They stand in a table `limits` of a row or of `[defaults]` in a file of rows, or in
`pyproject.toml`: `[tool.llama-perf.limits]` for every row and
`[tool.llama-perf.limits."GLOB"]` for the rows whose id matches. The one nearest to a
row holds.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic_core import CoreSchema, core_schema

from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.files import is_absent, read_text
from llama_perf.metrics import LIMIT_FIELDS
from llama_perf.strict_json import from_plain, parse_toml
from llama_perf.words import did_you_mean


class Limits(dict[str, float]):
    """Limits by their names in `llama_perf.metrics`; SpecError for a wrong one."""

    def __init__(
        self, values: Mapping[str, float] | Iterable[tuple[str, float]] = (), /
    ) -> None:
        super().__init__(values)
        for name, value in self.items():
            if not (math.isfinite(value) and value >= 0):
                raise SpecError(name, value, "allowed: 0 or more")
            if LIMIT_FIELDS[name].is_loss and value >= 1:
                raise SpecError(name, value, "allowed: a share from 0 to below 1")

    def __hash__(self) -> int:  # type: ignore[override] # a row is a key of dicts
        return hash(frozenset(self.items()))

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        fields = {
            name: core_schema.typed_dict_field(
                core_schema.int_schema(strict=True)
                if limit.integral
                else core_schema.float_schema(strict=True, allow_inf_nan=False),
                required=False,
            )
            for name, limit in LIMIT_FIELDS.items()
        }
        return core_schema.no_info_after_validator_function(
            cls, core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        )


ProjectLimits: TypeAlias = tuple[tuple[str, Limits], ...]
"""Pairs (glob of row ids, limits); the last that matches a row holds."""


def project_limits(pyproject: Path) -> ProjectLimits:
    """Read a `pyproject.toml`, if there is one; raises UserError naming the field."""
    if is_absent(pyproject):
        return ()
    text = read_text(pyproject, error=UserError)
    data = parse_toml(text, source=str(pyproject), error=UserError)
    table, path = data, ""
    for name in ("tool", "llama-perf", "limits"):
        table, path = table.get(name, {}), f"{path}.{name}".lstrip(".")
        if not isinstance(table, dict):
            raise UserError(f"{pyproject}: {path}: it must be a table")
    source = f"{pyproject}: {path}"
    globs = {name: value for name, value in table.items() if isinstance(value, dict)}
    every_row = {name: value for name, value in table.items() if name not in globs}
    of_globs = (
        (glob, _read(limits, f"{source}.{glob!r}")) for glob, limits in globs.items()
    )
    return ("*", _read(every_row, source)), *of_globs


def _read(table: Mapping[str, Any], source: str) -> Limits:
    check_names(table, LIMIT_FIELDS, "limit", source)
    return from_plain(Limits, table, source=source)


def check_names(
    table: Mapping[str, Any], allowed: Collection[str], kind: str, source: str
) -> None:
    """Raise RecordError for a name in `table` that no `kind` of those allowed has."""
    if unknown := sorted(set(table) - set(allowed)):
        meant = did_you_mean(unknown[0], allowed)
        words = f"unknown {kind}; {meant}allowed: {', '.join(allowed)}"
        raise RecordError(f"{source}: {unknown[0]}: {words}")
