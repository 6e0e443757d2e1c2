"""Whether a row became slower, judged by how much its processes differ.

One process can make a row suspicious; fresh processes then decide. A baseline of too
few processes has a fixed limit instead. Knows speeds, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import geometric_mean

from llama_perf.gate import thresholds
from llama_perf.gate.confirmation import Judgement, Trial, decided
from llama_perf.gate.limits import describe, metric_change
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline, speed_in
from llama_perf.gate.thresholds import THRESHOLDS, as_share, log_loss, relative_change
from llama_perf.results.run import RowResult
from llama_perf.rows.limit_overrides import Limits


def judge_speed(
    result: RowResult,
    baseline: SpeedBaseline,
    *,
    limits: Limits,
    unquantized: RowResult | None,
    fresh: Sequence[Trial] | None,
) -> Judgement:
    """Compare the speed of a measured row with the stored row of its id.

    `unquantized` is this run's result of `baseline.unquantized_row`. `fresh` are the
    row's fresh processes, None if confirmation was off. A loss on any basis makes the
    row slower; the changes start with tok/s, which is reported on every basis.
    """
    own = Trial(row=result, unquantized=unquantized)
    notes: dict[Basis, str] = {}
    for wanted in baseline.bases(result.row):
        basis, note = _available(wanted, own, baseline)
        # A basis that replaces another one may be wanted itself as well.
        notes.setdefault(basis, note)
    speeds = [_judged(basis, own, baseline, limits, fresh) for basis in notes]
    changes = [change for speed in speeds for change in speed.changes]
    notes_on = zip(speeds, notes.values(), strict=True)
    reasons = [f"{speed.reason}{note}" for speed, note in notes_on]
    if Basis.TOK_S is not next(iter(notes)):
        then, now = _speeds(Basis.TOK_S, own, baseline)
        changes.insert(0, metric_change(Basis.TOK_S.value, geometric_mean(then), now))
        reasons.insert(0, describe(changes[0]))
    detectable = [one.minimum_detectable for one in speeds if one.minimum_detectable]
    return Judgement(
        changes=tuple(changes),
        reason="; ".join(reasons),
        faster=all(speed.faster for speed in speeds),
        suspicious=any(speed.suspicious for speed in speeds),
        undecided=any(speed.undecided for speed in speeds),
        minimum_detectable=min(detectable, default=None),
    )


def _speed(basis: Basis, trial: Trial) -> float | None:
    if trial.row.measurement is None:
        return None
    other = None if trial.unquantized is None else trial.unquantized.measurement
    return speed_in(basis, trial.row.measurement, other)


def _available(wanted: Basis, own: Trial, baseline: SpeedBaseline) -> tuple[Basis, str]:
    """`wanted`, or the basis that replaces it where it is not known, and why."""

    def known(basis: Basis) -> bool:
        then, now = baseline.values(basis, own.row.id), _speed(basis, own)
        return then is not None and now is not None

    note = ""
    if wanted is Basis.RATIO and not known(wanted):
        note = "; its unquantized row was not measured before it in this run"
        if baseline.unquantized_row(own.row.id) is None:
            note = "; no unquantized row was recorded with it"
        wanted = Basis.BANDWIDTH
    if wanted is Basis.BANDWIDTH and not known(wanted):
        return Basis.TOK_S, "; the device's bandwidth is not known"
    return wanted, note


def _speeds(
    basis: Basis, own: Trial, baseline: SpeedBaseline
) -> tuple[list[float], float]:
    """The stored speeds on a basis that is known, and the run's."""
    then, now = baseline.values(basis, own.row.id), _speed(basis, own)
    assert then is not None, "only a basis that is known is judged"
    assert now is not None, "only a basis that is known is judged"
    return then, now


def _judged(
    basis: Basis,
    own: Trial,
    baseline: SpeedBaseline,
    limits: Limits,
    fresh: Sequence[Trial] | None,
) -> Judgement:
    """The judgement on one basis."""
    values, now = _speeds(basis, own, baseline)
    stored = baseline.speed(basis, own.row.id)
    if stored is None:
        limit = limits["tok_s"]
        change = metric_change(basis.value, geometric_mean(values), now, limit)
        return Judgement(
            changes=(change,),
            reason=f"{describe(change)}; fixed limit: the baseline has {len(values)} of"
            f" the {THRESHOLDS.min_processes} processes from which noise is estimated",
            faster=change.change > limit,
        )
    noise = (stored.spread, stored.processes, limits["least_loss"])
    limit, loss = thresholds.screen_limit(*noise), log_loss(now, stored.mean)
    change = metric_change(basis.value, stored.mean, now, as_share(limit))
    speed = Judgement(
        changes=(replace(change, worse=False),),
        reason=describe(change),
        faster=-loss > thresholds.faster_limit(*noise),
        minimum_detectable=thresholds.minimum_detectable(*noise),
    )
    if loss <= limit:
        return speed

    def judge(speeds: Sequence[float]) -> tuple[bool, str]:
        mean, limit = geometric_mean(speeds), thresholds.confirm_limit(*noise)
        digits = 2 if basis is Basis.TOK_S else 3
        return log_loss(mean, stored.mean) > limit, (
            f"{mean:.{digits}f} ({relative_change(mean, stored.mean):+.1%},"
            f" limit {as_share(limit):.1%})"
        )

    trials = (_speed(basis, trial) for trial in fresh or ())
    speeds = [one for one in trials if one is not None]
    return decided(speed, "slower", fresh, speeds, judge)
