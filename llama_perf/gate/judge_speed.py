"""Whether a row became slower, judged by how much its processes differ.

One process can make a row suspicious; fresh processes then decide. A baseline of too
few processes has a fixed limit instead. Knows speeds, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llama_perf.gate.confirmation import Trial, confirmation_of, why_undecided
from llama_perf.gate.limits import describe, metric_change
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline, StoredSpeed, speed_in
from llama_perf.gate.thresholds import (
    THRESHOLDS,
    Thresholds,
    as_share,
    confirm_limit,
    faster_limit,
    geometric_mean,
    log_loss,
    minimum_detectable,
    relative_change,
    screen_limit,
)
from llama_perf.results.run import RowResult
from llama_perf.results.verdict import MetricChange
from llama_perf.rows.limit_overrides import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSpeed:
    """The judgement on a row's speed.

    `changes` start with tok/s, which is reported on every basis. `undecided` says that
    the row is suspicious and that fresh processes did not decide.
    """

    changes: tuple[MetricChange, ...]
    reason: str
    faster: bool
    suspicious: bool = False
    undecided: bool = False
    minimum_detectable: float | None = None

    @property
    def worse(self) -> bool:
        """Whether the row became slower."""
        return any(change.worse for change in self.changes)


def judge_speed(
    result: RowResult,
    baseline: SpeedBaseline,
    *,
    limits: Limits,
    unquantized: RowResult | None,
    fresh: Sequence[Trial] | None,
) -> JudgedSpeed:
    """Compare the speed of a measured row with the stored row of its id.

    `unquantized` is this run's result of `baseline.unquantized_row`. `fresh` are the
    row's fresh processes, None if confirmation was off.
    """
    evidence = _Evidence(result, baseline, unquantized, fresh, limits)
    notes: dict[Basis, str] = {}
    for wanted in baseline.bases(result.row):
        basis, note = evidence.available(wanted)
        # A basis that replaces another one may be wanted itself as well.
        notes.setdefault(basis, note)
    speed = _combined([evidence.judge(basis, note) for basis, note in notes.items()])
    rate = evidence.tok_s_change()
    if speed.changes[0].metric == rate.metric:
        return speed
    return replace(
        speed,
        changes=(rate, *speed.changes),
        reason=f"{describe(rate)}; {speed.reason}",
    )


def _combined(speeds: Sequence[JudgedSpeed]) -> JudgedSpeed:
    """The judgements on all bases as one: a loss on any of them makes a row slower."""
    if len(speeds) == 1:
        return speeds[0]
    detectable = [
        speed.minimum_detectable for speed in speeds if speed.minimum_detectable
    ]
    return JudgedSpeed(
        changes=tuple(change for speed in speeds for change in speed.changes),
        reason="; ".join(speed.reason for speed in speeds),
        faster=all(speed.faster for speed in speeds),
        suspicious=any(speed.suspicious for speed in speeds),
        undecided=any(speed.undecided for speed in speeds),
        minimum_detectable=min(detectable, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Everything from which the speed of one row is judged."""

    result: RowResult
    baseline: SpeedBaseline
    unquantized: RowResult | None
    fresh: Sequence[Trial] | None
    limits: Limits

    def available(self, wanted: Basis) -> tuple[Basis, str]:
        """`wanted`, or the basis that replaces it where it is not known, and why."""
        note = ""
        if wanted is Basis.RATIO and not self._knows(wanted):
            note = "; its unquantized row was not measured before it in this run"
            if self.baseline.unquantized_row(self.result.id) is None:
                note = "; no unquantized row was recorded with it"
            wanted = Basis.BANDWIDTH
        if wanted is Basis.BANDWIDTH and not self._knows(wanted):
            return Basis.TOK_S, "; the device's bandwidth is not known"
        return wanted, note

    def _knows(self, basis: Basis) -> bool:
        stored = self.baseline.values(basis, self.result.id)
        return stored is not None and self._speed(basis, self._own) is not None

    @property
    def _own(self) -> Trial:
        """The run's own process, which is no fresh one."""
        return Trial(row=self.result, unquantized=self.unquantized)

    @staticmethod
    def _speed(basis: Basis, trial: Trial) -> float | None:
        if trial.row.measurement is None:
            return None
        other = trial.unquantized
        unquantized = None if other is None else other.measurement
        return speed_in(basis, trial.row.measurement, unquantized)

    def _known_speed(self, basis: Basis) -> float:
        speed = self._speed(basis, self._own)
        assert speed is not None, "only a basis that is known is judged"
        return speed

    def _stored_speeds(self, basis: Basis) -> list[float]:
        speeds = self.baseline.values(basis, self.result.id)
        assert speeds is not None, "only a basis that is known is judged"
        return speeds

    def tok_s_change(self) -> MetricChange:
        """The change of tok/s, without a limit."""
        then = geometric_mean(self._stored_speeds(Basis.TOK_S))
        now = self._known_speed(Basis.TOK_S)
        return metric_change(Basis.TOK_S.value, then, now, None, more_is_better=True)

    def judge(self, basis: Basis, note: str) -> JudgedSpeed:
        """The judgement on one basis; `note` ends its reason."""
        stored = self.baseline.speed(basis, self.result.id)
        if stored is None:
            speed = self._judge_by_fixed_limit(basis)
        else:
            speed = self._judge_by_noise(basis, stored)
        return replace(speed, reason=speed.reason + note)

    def _judge_by_fixed_limit(self, basis: Basis) -> JudgedSpeed:
        stored = self._stored_speeds(basis)
        now, limit = self._known_speed(basis), self.limits["tok_s"]
        change = metric_change(
            basis.value, geometric_mean(stored), now, limit, more_is_better=True
        )
        return JudgedSpeed(
            changes=(change,),
            reason=f"{describe(change)}; fixed limit: the baseline has"
            f" {len(stored)} of the {THRESHOLDS.min_processes} processes from which"
            " noise is estimated",
            faster=change.change > limit,
        )

    def _judge_by_noise(self, basis: Basis, stored: StoredSpeed) -> JudgedSpeed:
        thresholds = replace(THRESHOLDS, min_loss=self.limits["least_loss"])
        now = self._known_speed(basis)
        limit = screen_limit(stored.spread, stored.processes, thresholds)
        loss = log_loss(now, stored.mean)
        change = metric_change(
            basis.value, stored.mean, now, as_share(limit), more_is_better=True
        )
        speed = JudgedSpeed(
            changes=(replace(change, worse=False),),
            reason=describe(change),
            faster=-loss > faster_limit(stored.spread, stored.processes, thresholds),
            suspicious=loss > limit,
            minimum_detectable=minimum_detectable(
                stored.spread, stored.processes, thresholds
            ),
        )
        if not speed.suspicious:
            return speed
        return self._confirm(speed, basis, stored, thresholds)

    def _confirm(
        self,
        speed: JudgedSpeed,
        basis: Basis,
        stored: StoredSpeed,
        thresholds: Thresholds,
    ) -> JudgedSpeed:
        """The judgement on a suspicious speed after its fresh processes."""
        trials = (self._speed(basis, trial) for trial in self.fresh or ())
        speeds = [one for one in trials if one is not None]
        if (why := why_undecided("slower", self.fresh, len(speeds))) is not None:
            return replace(speed, undecided=True, reason=f"{speed.reason}; {why}")
        mean = geometric_mean(speeds)
        limit = confirm_limit(stored.spread, stored.processes, thresholds)
        slower = log_loss(mean, stored.mean) > limit
        digits = 2 if basis is Basis.TOK_S else 3
        (change,) = speed.changes
        return replace(
            speed,
            reason=f"{speed.reason}; {confirmation_of(slower, len(speeds))}:"
            f" {mean:.{digits}f} ({relative_change(mean, stored.mean):+.1%},"
            f" limit {as_share(limit):.1%})",
            changes=(replace(change, worse=slower),),
        )
