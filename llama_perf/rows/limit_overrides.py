"""Limits that a user sets for a metric, for all rows or for some: how they are written.

In a file of rows as a table `limits` of a row or of `[defaults]`; in `pyproject.toml`
as `[tool.llama-perf.limits]` for every row and `[tool.llama-perf.limits."GLOB"]` for
those whose id matches. What is set nearest to a row holds. Knows no device's own
limits.
"""

from __future__ import annotations

import fnmatch
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.strict_json import STRICT, from_plain

_LOSSES = ("least_loss", "tok_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class SetLimits:
    """The limits of `limits.Limits` that are set; None: as they were."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    least_loss: float | None = None
    tok_s: float | None = None
    peak_memory: float | None = None
    peak_memory_bytes: int | None = None
    allocated_memory: float | None = None
    model_size: float | None = None
    calls: float | None = None
    graph_breaks: int | None = None
    compilations: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if not (math.isfinite(value) and value >= 0):
                raise SpecError(name, value, "allowed: 0 or more")
            if name in _LOSSES and value >= 1:
                raise SpecError(name, value, "allowed: a share from 0 to below 1")

    @property
    def given(self) -> dict[str, float]:
        """Those that are set."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectLimits:
    """What a project's `pyproject.toml` sets."""

    every: SetLimits = SetLimits()
    by_glob: tuple[tuple[str, SetLimits], ...] = ()

    def of(self, row_id: str) -> Iterator[SetLimits]:
        """Those for one row, each to be set after the one before."""
        yield self.every
        for glob, limits in self.by_glob:
            if fnmatch.fnmatchcase(row_id, glob):
                yield limits


def project_limits(pyproject: Path) -> ProjectLimits:
    """Those of a `pyproject.toml`, none where there is no such file.

    Raises UserError naming the file and the field.
    """
    try:
        data: dict[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except OSError:
        return ProjectLimits()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{pyproject}: not TOML: {error}") from None
    table = data.get("tool", {}).get("llama-perf", {}).get("limits", {})
    source = f"{pyproject}: tool.llama-perf.limits"
    if not isinstance(table, dict):
        raise UserError(f"{source}: it must be a table")
    globs = {name: each for name, each in table.items() if isinstance(each, dict)}
    plain = {name: each for name, each in table.items() if name not in globs}
    return ProjectLimits(
        every=_read(plain, source),
        by_glob=tuple(
            (glob, _read(each, f"{source}.{glob!r}")) for glob, each in globs.items()
        ),
    )


def _read(table: Mapping[str, Any], source: str) -> SetLimits:
    check_names(table, source)
    try:
        return from_plain(SetLimits, table, source=source)
    except RecordError as error:
        raise UserError(str(error)) from None


def check_names(table: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a name that is no limit's."""
    known = [each.name for each in fields(SetLimits)]
    if unknown := sorted(set(table) - set(known)):
        raise UserError(
            f"{source}: {unknown[0]}: unknown limit; allowed: {', '.join(known)}"
        )
