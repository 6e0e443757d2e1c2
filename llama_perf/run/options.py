"""What a run needs besides its rows; imports no torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_perf.errors import SpecError
from llama_perf.rows.spec import RowSpec


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


def check_injections(options: RunOptions, rows: Sequence[RowSpec]) -> None:
    """Raise SpecError for a slowdown or a damage that is of none of `rows`."""
    ids = [row.id for row in rows]
    for each in options.slowdowns:
        if not any(map(each.matches, ids)):
            raise SpecError("inject-slowdown", each.glob, "no selected row matches")
    for glob in options.damages:
        if not fnmatch.filter(ids, glob):
            raise SpecError("inject-damage", glob, "no selected row matches")


ISOLATIONS = ("row", "session", "none")
INJECT_DAMAGE: dict[str, Any] = {
    "metavar": "GLOB",
    "action": "append",
    "default": [],
    "help": "development switch: damage one scale of matching rows, to see the check of"
    " their values fail (repeatable)",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "--isolate": {
        "choices": ISOLATIONS,
        "default": "session",
        "help": "each row in a process of its own (row), all rows in one that is"
        " started anew where a row breaks (session, the default), or in this one"
        " (none)",
    },
    "--row-timeout": {
        "metavar": "SECONDS",
        "type": float,
        "default": None,
        "help": "end a row that takes longer, as INVALID (default: no limit)",
    },
    "--time-budget": {
        "metavar": "SECONDS",
        "type": float,
        "default": None,
        "help": "start no row that cannot be finished within so much of the whole"
        " run's time; the rest is NOT_RUN",
    },
    "--wait": {
        "action": "store_true",
        "default": False,
        "help": "wait for another run on this device instead of refusing",
    },
}
"""What argparse and pytest, which hands it on, are told of an option of both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """What a run needs besides its rows.

    `damages` are globs of rows of which one scale is damaged, to see the check of
    their values fail. `isolate`: each row in a process of its own ("row"), all in one
    that is started anew where a row breaks ("session"), or in this process ("none").
    `row_timeout_s` ends a row that takes longer, wherever it has a process;
    `time_budget_s` is what the whole run may take; `resume` names the results of a run
    that stopped, whose measured rows are taken over; `wait` lets a run wait for
    another one on the device instead of refusing.
    """

    checkpoints: Path | None = None
    slowdowns: tuple[Slowdown, ...] = ()
    damages: tuple[str, ...] = ()
    isolate: str = "session"
    row_timeout_s: float | None = None
    time_budget_s: float | None = None
    resume: Path | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        if self.isolate not in ISOLATIONS:
            allowed = f"allowed: {', '.join(ISOLATIONS)}"
            raise SpecError("isolate", self.isolate, allowed)
        for name in ("row_timeout", "time_budget"):
            seconds = getattr(self, f"{name}_s")
            if seconds is not None and not 0 < seconds < math.inf:
                name = name.replace("_", "-")
                raise SpecError(name, seconds, "allowed: a number of seconds above 0")
        if self.isolate == "none" and self.row_timeout_s is not None:
            raise SpecError(
                "row-timeout",
                self.row_timeout_s,
                "a row without a process of its own cannot be ended; leave out"
                " --isolate none",
            )

    def slowdown(self, row_id: str) -> float:
        """The share of steps that the row repeats; 0 for almost every row."""
        return sum(each.share for each in self.slowdowns if each.matches(row_id))

    def damaged(self, row_id: str) -> bool:
        """Whether one of the row's scales is damaged; False for almost every row."""
        return any(fnmatch.fnmatchcase(row_id, glob) for glob in self.damages)
