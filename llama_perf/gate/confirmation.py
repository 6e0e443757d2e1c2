"""The results of fresh processes, which decide where one process raised a doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.results.run import RowResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A row in a fresh process, and the unquantized row in another if it is needed."""

    row: RowResult
    unquantized: RowResult | None = None

    @property
    def missed(self) -> RowResult | None:
        """The first of the two results that is no measurement, or None."""
        for result in (self.row, self.unquantized):
            if result is not None and result.measurement is None:
                return result
        return None


def why_undecided(
    looks: str, trials: Sequence[Trial] | None, measured: int
) -> str | None:
    """Why the fresh processes do not decide, or None if they do.

    `looks` is what the run's own process looks like: "slower" or "larger". `trials` is
    None if confirmation was off; `measured` of them gave a value.
    """
    if trials is None:
        return f"looks {looks}; confirmation was off"
    if measured >= THRESHOLDS.confirm_processes:
        return None
    finished = f"{measured} of {THRESHOLDS.confirm_processes} fresh processes finished"
    problem = next((trial.missed.summary for trial in trials if trial.missed), "")
    return f"looks {looks}; {finished}{problem and ': '}{problem}"


def confirmation_of(worse: bool, processes: int) -> str:
    """Whether so many fresh processes confirmed a loss or a growth, in words."""
    return f"{'' if worse else 'not '}confirmed by {processes} fresh processes"
