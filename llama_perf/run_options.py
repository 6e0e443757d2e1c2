"""What a run needs besides its rows; imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_perf.errors import SpecError
from llama_perf.spec import RowSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Slowdown:
    """A development switch: rows matching `glob` repeat that share of their steps."""

    glob: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Slowdown:
        """Parse "GLOB=PERCENT", such as "*int8wo*=25"; raises SpecError."""
        glob, separator, percent = text.rpartition("=")
        try:
            share = float(percent.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not separator or not glob or not 0 < share <= 10:
            raise SpecError(
                "inject-slowdown", text, "write GLOB=PERCENT, percent from 0 to 1000"
            )
        return cls(glob=glob, share=share)

    def matches(self, row_id: str) -> bool:
        """Whether it slows this row."""
        return fnmatch.fnmatchcase(row_id, self.glob)


def check_slowdowns(slowdowns: Iterable[Slowdown], rows: Sequence[RowSpec]) -> None:
    """Raise SpecError for one that slows none of `rows`."""
    for each in slowdowns:
        if not any(each.matches(row.id) for row in rows):
            raise SpecError("inject-slowdown", each.glob, "no selected row matches")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """What a run needs besides its rows."""

    checkpoints: Path | None = None
    slowdowns: tuple[Slowdown, ...] = ()

    def slowdown(self, row_id: str) -> float:
        """The share of steps that the row repeats; 0 for almost every row."""
        return sum(each.share for each in self.slowdowns if each.matches(row_id))
