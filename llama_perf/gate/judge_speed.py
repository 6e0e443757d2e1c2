"""Whether a row's speed was lost, by how far processes lie apart.

One process makes a row suspicious, fresh ones decide. A baseline of too few processes
has a plain limit. Knows speeds and what they are compared by, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llama_perf.gate.confirmation import Trial, confirmation_of, undecided_since
from llama_perf.gate.limits import Limits, describe, moved_by
from llama_perf.gate.speed import StoredSpeed, stored_speeds
from llama_perf.gate.speed_baseline import (
    Basis,
    bases,
    row_of,
    stored_values,
    unquantized_row,
    value,
)
from llama_perf.gate.thresholds import (
    THRESHOLDS,
    Thresholds,
    as_share,
    change,
    confirm_limit,
    gain_limit,
    geometric_mean,
    log_loss,
    minimum_detectable,
    screen_limit,
)
from llama_perf.results.baseline import Baseline
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult
from llama_perf.results.verdict import MetricChange


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSpeed:
    """What is to be said of a row's speed: its changes, and how they were decided on.

    `changes` start with tok/s, which is told whatever was judged.
    """

    changes: tuple[MetricChange, ...]
    reason: str
    faster: bool
    suspicious: bool = False
    undecided: bool = False
    minimum_detectable: float | None = None

    @property
    def worse(self) -> bool:
        """Whether speed was lost."""
        return any(each.worse for each in self.changes)


def judge_speed(
    result: RowResult,
    baseline: Baseline,
    *,
    environment: Environment,
    limits: Limits,
    unquantized: RowResult | None,
    fresh: Sequence[Trial] | None,
) -> JudgedSpeed:
    """The speed of a measured row beside the row of its id in `baseline`.

    `unquantized` is what `basis.unquantized_row` names, as this run measured it.
    `fresh` are the row's fresh processes, None where none were asked.
    """
    given = _Given(result, baseline, unquantized, fresh, limits)
    possible: dict[Basis, str] = {}
    for wanted in bases(result.row, baseline, environment):
        basis, told = given.possible(wanted)
        # One that stands in for another may be asked for itself as well.
        possible.setdefault(basis, told)
    judged = [given.judged(basis, told) for basis, told in possible.items()]
    one = judged[0] if len(judged) == 1 else _together(judged)
    rate = given.rate()
    if one.changes[0].metric == rate.metric:
        return one
    return replace(
        one, changes=(rate, *one.changes), reason=f"{describe(rate)}; {one.reason}"
    )


def _together(judged: Sequence[JudgedSpeed]) -> JudgedSpeed:
    """Several bases of one row: any that lost makes it slower."""
    least = [each.minimum_detectable for each in judged if each.minimum_detectable]
    return JudgedSpeed(
        changes=tuple(change for each in judged for change in each.changes),
        reason="; ".join(each.reason for each in judged),
        faster=all(each.faster for each in judged),
        suspicious=any(each.suspicious for each in judged),
        undecided=any(each.undecided for each in judged),
        minimum_detectable=min(least) if least else None,
    )


@dataclass(frozen=True, slots=True)
class _Given:
    """What one row is judged from."""

    result: RowResult
    baseline: Baseline
    unquantized: RowResult | None
    fresh: Sequence[Trial] | None
    limits: Limits

    def possible(self, wanted: Basis) -> tuple[Basis, str]:
        """`wanted`, or what stands in for it where that cannot be had, and why."""
        why = ""
        if wanted is Basis.RATIO and self._missing(wanted):
            why = "; its unquantized row was not measured before it in this run"
            if unquantized_row(self.result.row, self.baseline) is None:
                why = "; no unquantized row was recorded with it"
            wanted = Basis.BANDWIDTH
        if wanted is Basis.BANDWIDTH and self._missing(wanted):
            return Basis.TOK_S, "; the device's bandwidth is not known"
        return wanted, why

    def _missing(self, basis: Basis) -> bool:
        return self._now(basis) is None or self._stored(basis) is None

    def _now(self, basis: Basis) -> float | None:
        assert self.result.measurement is not None, "only a measured row is judged"
        return value(basis, self.result.measurement, _measurement(self.unquantized))

    def _stored(self, basis: Basis) -> list[float] | None:
        row = row_of(self.baseline, self.result.id)
        assert row is not None, "only a row that is stored is judged"
        return stored_values(
            basis, row, unquantized_row(self.result.row, self.baseline)
        )

    def rate(self) -> MetricChange:
        """What became of its tok/s, without a limit."""
        now = self._now(Basis.TOK_S)
        assert now is not None, "known of every measured row"
        return moved_by(
            Basis.TOK_S.value, self._stored_mean(Basis.TOK_S), now, None, -1
        )

    def _stored_mean(self, basis: Basis) -> float:
        """The mean over the processes of the baseline."""
        stored = self._stored(basis)
        assert stored is not None, "asked for where it is known"
        return geometric_mean(stored)

    def judged(self, basis: Basis, told: str) -> JudgedSpeed:
        """The row on one basis that is possible; `told` ends its reason."""
        found = self._judged(basis)
        return replace(found, reason=found.reason + told)

    def _judged(self, basis: Basis) -> JudgedSpeed:
        now = self._now(basis)
        assert now is not None, "asked for where it is known"
        speed = stored_speeds(self.baseline, basis).get(self.result.id)
        if speed is None:
            return self._by_plain_limit(basis, now)
        thresholds = replace(THRESHOLDS, least_loss=self.limits.least_loss)
        limit = screen_limit(speed.spread, speed.processes, thresholds)
        loss = log_loss(now, speed.mean)
        moved = moved_by(basis.value, speed.mean, now, as_share(limit), -1)
        moved = replace(moved, worse=False)
        gain = gain_limit(speed.spread, speed.processes, thresholds)
        found = JudgedSpeed(
            changes=(moved,),
            reason=describe(moved),
            faster=-loss > gain,
            suspicious=loss > limit,
            minimum_detectable=minimum_detectable(
                speed.spread, speed.processes, thresholds
            ),
        )
        if not found.suspicious:
            return found
        return self._confirmed(basis, found, speed, thresholds)

    def _by_plain_limit(self, basis: Basis, now: float) -> JudgedSpeed:
        moved = moved_by(
            basis.value, self._stored_mean(basis), now, self.limits.tok_s, -1
        )
        count = len(self._stored(basis) or ())
        told = (
            f"; a plain limit: the baseline has {count} of the"
            f" {THRESHOLDS.least_processes} processes that tell a loss from noise"
        )
        return JudgedSpeed(
            changes=(moved,),
            reason=describe(moved) + told,
            faster=moved.change > self.limits.tok_s,
        )

    def _confirmed(
        self,
        basis: Basis,
        found: JudgedSpeed,
        speed: StoredSpeed,
        thresholds: Thresholds,
    ) -> JudgedSpeed:
        """A suspicious speed after its fresh processes, where they are enough."""
        values = [
            one
            for each in self.fresh or ()
            if each.row.measurement is not None
            for one in [
                value(basis, each.row.measurement, _measurement(each.unquantized))
            ]
            if one is not None
        ]
        if (why := undecided_since(self.fresh, len(values))) is not None:
            return replace(found, undecided=True, reason=f"{found.reason}; {why}")
        mean = geometric_mean(values)
        limit = confirm_limit(speed.spread, speed.processes, thresholds)
        slower = log_loss(mean, speed.mean) > limit
        again = change(mean, speed.mean)
        digits = 2 if basis is Basis.TOK_S else 3
        told = (
            f"; {confirmation_of(slower, len(values))}: {mean:.{digits}f}"
            f" ({again:+.1%}, limit {as_share(limit):.1%})"
        )
        (moved,) = found.changes
        return replace(
            found,
            reason=found.reason + told,
            changes=(replace(moved, worse=slower),),
        )


def _measurement(result: RowResult | None) -> Measurement | None:
    return None if result is None else result.measurement
