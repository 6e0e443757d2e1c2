"""Judgements, and the fresh processes that decide where one process raised a doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.results.run import RowResult
from llama_perf.results.verdict import MetricChange


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The judgement on a row's speed or on its peak; without a change there is none.

    `undecided` says that it is suspicious and that fresh processes did not decide.
    """

    changes: tuple[MetricChange, ...] = ()
    reason: str = ""
    faster: bool = False
    suspicious: bool = False
    undecided: bool = False
    minimum_detectable: float | None = None

    @property
    def worse(self) -> bool:
        """Whether the row became slower, or its peak grew."""
        return any(change.worse for change in self.changes)


def decided(
    doubt: Judgement,
    looks: str,
    fresh: Sequence[Trial] | None,
    values: Sequence[float],
    judge: Callable[[Sequence[float]], tuple[bool, str]],
) -> Judgement:
    """The judgement after fresh processes, None if confirmation was off.

    `looks` is what the run's own process looks like: "slower" or "larger". `values` are
    those of the processes that gave one. `judge` says of them all whether they are
    worse, and describes them.
    """
    needed = THRESHOLDS.confirm_processes
    worse, undecided = False, fresh is None or len(values) < needed
    if fresh is None:
        end = f"looks {looks}; confirmation was off"
    elif undecided:
        problems = (f": {trial.missed.summary}" for trial in fresh if trial.missed)
        end = f"looks {looks}; {len(values)} of {needed} fresh processes finished"
        end += next(problems, "")
    else:
        worse, words = judge(values)
        end = f"confirmed by {len(values)} fresh processes: {words}"
        end = end if worse else f"not {end}"
    return replace(
        doubt,
        changes=tuple(replace(change, worse=worse) for change in doubt.changes),
        reason=f"{doubt.reason}; {end}",
        suspicious=True,
        undecided=undecided,
    )
