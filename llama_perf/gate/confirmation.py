"""What a row showed in fresh processes, which decide where one process raised doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.results.run import RowResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A row in a fresh process, and the unquantized row in one beside it."""

    row: RowResult
    unquantized: RowResult | None = None

    @property
    def missed(self) -> RowResult | None:
        """What of it was not measured."""
        both = (self.row, self.unquantized)
        return next(
            (each for each in both if each is not None and each.measurement is None),
            None,
        )


def undecided_since(trials: Sequence[Trial] | None, measured: int) -> str | None:
    """Why `trials` decide nothing, of which so many were measured; None: they do.

    `trials` is None where none were asked.
    """
    if trials is None:
        return "suspicious, and fresh processes were not asked"
    if measured >= THRESHOLDS.confirm_processes:
        return None
    missed = next((each.missed.summary for each in trials if each.missed), "")
    return (
        f"suspicious, and {measured} of {THRESHOLDS.confirm_processes} fresh processes"
        f" came to an end{missed and ': '}{missed}"
    )


def confirmation_of(loss: bool, measured: int) -> str:
    """What so many fresh processes said of a loss or a growth, in words."""
    return f"{'' if loss else 'not '}confirmed by {measured} fresh processes"
