"""What decides on a row: its fresh processes, its pairs, and the judgement on them.

`gate/judgements.py` makes the judgement. Knows no verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_perf.gate.blocks import BlockTest
from llama_perf.gate.speed_baseline import Basis, speed_in
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import ProcessSamples
from llama_perf.results.run import MetricChange, RowResult


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

    def speed(self, basis: Basis) -> float | None:
        """The row's speed on a basis; None if it or its divisor was not measured."""
        if self.row.measurement is None:
            return None
        other = None if self.unquantized is None else self.unquantized.measurement
        return speed_in(basis, self.row.measurement, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsTest:
    """The test of a row by pairs of the baseline's commit with this checkout.

    `base` and `head` are what each side's first process measured. `processes` are all
    of the head's.
    """

    test: BlockTest
    words: str
    base: Measurement
    head: Measurement
    processes: tuple[ProcessSamples, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """What ran after a row looked slower or larger, to decide on it.

    `pairs` decide on the speed where there are any; `fresh` processes decide on the
    rest. `no_pairs` says why there are no pairs, `disturbed` how many processes were
    left out of `fresh` and why.
    """

    fresh: Sequence[Trial] = ()
    pairs: PairsTest | None = None
    no_pairs: str = ""
    disturbed: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The judgement on a row's speed or on its peak; without a change there is none."""

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
