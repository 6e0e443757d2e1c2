"""Compares a measured row with its baseline and gives the verdict, with its reason.

Speed is judged by how much the baseline's processes differ, and a growth of peak memory
by its limit; in both, one process makes a row suspicious and fresh processes decide. A
baseline of too few processes, and every other metric, has a fixed limit. A row that is
missing, undecided or not comparable never passes: it fails unless the caller allows
that. A baseline of another kind of device judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llama_perf.gate.confirmation import Trial
from llama_perf.gate.judge_memory import JudgedPeak, compare_peak, judge_peak
from llama_perf.gate.judge_speed import JudgedSpeed, judge_speed
from llama_perf.gate.limits import describe, limits_of, metric_change
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.gate.step_changes import more_work, operators_that_grew, other_choices
from llama_perf.metrics import TOK_S, Rule, metrics_by
from llama_perf.results.baseline import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Comparison, MetricChange, Verdict
from llama_perf.rows.limit_overrides import Limits


def compare(
    result: RowResult,
    baseline: SpeedBaseline | None,
    *,
    limits: Limits | None = None,
    unquantized: RowResult | None = None,
    missing_fails: bool = True,
    undecided_fails: bool = True,
    fresh: Sequence[Trial] | None = None,
) -> Comparison:
    """The verdict on one row, compared with the stored row of its id.

    `baseline` is built once for the run, None if the device has none. `limits` are the
    row's; without them its device's. `unquantized` is this run's result of
    `baseline.unquantized_row`. `fresh` are the row's fresh processes, None if
    confirmation was off: a suspicious row is then UNDECIDED.
    """
    stored = None if baseline is None else baseline.row(result.id)
    if result.status is Status.NOT_RUN:
        reason = str(result.reason)
        if stored is not None:
            reason += "; the baseline has this row, so it ran before"
        failed = stored is not None
        return _comparison(result, Verdict.NOT_RUN, reason, failed=failed)
    now = result.measurement
    if now is None:
        return _comparison(result, Verdict.INVALID, str(result.reason), failed=True)
    if baseline is None or stored is None:
        reason = "the baseline of this device does not have this row"
        if baseline is None:
            reason = "no baseline for this device"
        return _comparison(result, Verdict.NO_BASELINE, reason, failed=missing_fails)
    if (why := _why_incomparable(result, now, stored)) is not None:
        return _comparison(result, Verdict.INCOMPARABLE, why, failed=True)
    if not baseline.is_of_this_device:
        key = baseline.stored.environment.device_key
        return _reported(result, now, stored, recorded_on=key)
    limits = limits_of(result.row) if limits is None else limits
    speed = judge_speed(
        result, baseline, limits=limits, unquantized=unquantized, fresh=fresh
    )
    peak = judge_peak(now, stored, limits, fresh)
    comparison = judge(result, stored, speed, peak, limits)
    if comparison.verdict is Verdict.UNDECIDED and not undecided_fails:
        comparison = replace(comparison, failed=False)
    return comparison


def not_compared(result: RowResult) -> Comparison:
    """The verdict if no comparison was asked for: an INVALID row still fails."""
    if result.status is Status.MEASURED:
        return _comparison(
            result, Verdict.NOT_COMPARED, "no comparison asked for", failed=False
        )
    return compare(result, None)


def _why_incomparable(
    result: RowResult, now: Measurement, stored: BaselineRow
) -> str | None:
    if result.row.fingerprint != stored.fingerprint:
        return "the row changed under its id since the baseline was recorded"
    then = stored.measurement
    if now.weights != then.weights:
        return f"other weights: {then.weights} in the baseline, {now.weights} now"
    return None


def _reported(
    result: RowResult, now: Measurement, stored: BaselineRow, *, recorded_on: str
) -> Comparison:
    """The changes since another device's baseline, without a judgement."""
    then = stored.measurement
    rate = metric_change(
        TOK_S.title, then.tok_s, now.tok_s, None, more_is_better=TOK_S.more_is_better
    )
    peak = compare_peak(now.peak_memory_bytes, stored, None)
    reason = (
        f"the baseline is of another device, {recorded_on}, so nothing is judged:"
        f" {describe(rate)}"
    )
    comparison = _comparison(result, Verdict.INCOMPARABLE, reason, failed=False)
    return replace(
        comparison,
        changes=(rate, *_peak_change(peak), *_other_changes(now, then, None)),
    )


def judge(
    result: RowResult,
    stored: BaselineRow,
    speed: JudgedSpeed,
    peak: JudgedPeak,
    limits: Limits,
) -> Comparison:
    """The verdict on a measured row whose speed and peak have been judged.

    Judges the other metrics by their limits.
    """
    assert result.measurement is not None, "only a measured row is judged"
    now, then = result.measurement, stored.measurement
    others = _other_changes(now, then, limits)
    changes = (*speed.changes, *_peak_change(peak), *others)
    choices = other_choices(now, then)

    def verdict(kind: Verdict, *reasons: str, failed: bool) -> Comparison:
        comparison = _comparison(result, kind, "; ".join(reasons), failed=failed)
        return replace(
            comparison,
            changes=changes,
            why=operators_that_grew(now, then) if failed else (),
            suspicious=speed.suspicious,
            suspicious_peak=peak.suspicious,
            minimum_detectable=speed.minimum_detectable,
        )

    larger = [peak.reason] if peak.worse else []
    larger += [describe(change) for change in others if change.worse]
    larger += more_work(now, then, limits)
    # A growth that fresh processes refuted, or could not decide on.
    doubted_peak = [peak.reason] if peak.suspicious and not peak.worse else []
    remarks = [*doubted_peak, *choices]
    if speed.worse:
        return verdict(Verdict.SLOWER, speed.reason, *larger, *remarks, failed=True)
    doubt = [speed.reason] if speed.undecided else []
    if larger:
        return verdict(Verdict.LARGER, *larger, *doubt, *remarks, failed=True)
    if doubt or peak.undecided:
        return verdict(Verdict.UNDECIDED, *doubt, *remarks, failed=True)
    if speed.faster:
        return verdict(Verdict.FASTER, speed.reason, *remarks, failed=False)
    for change in (*_peak_change(peak), *others):
        if change.limit is not None and -change.change > change.limit:
            return verdict(Verdict.SMALLER, describe(change), *choices, failed=False)
    within = f"within its limits: {speed.reason}"
    return verdict(Verdict.SAME, within, *doubted_peak, failed=False)


def _peak_change(peak: JudgedPeak) -> list[MetricChange]:
    return [] if peak.change is None else [peak.change]


def _other_changes(
    now: Measurement, then: Measurement, limits: Limits | None
) -> list[MetricChange]:
    """The metrics that both have and that need no process of their own to judge.

    Without limits none of them is judged.
    """
    changes = []
    for metric in metrics_by(Rule.REPORTED, Rule.GROWTH):
        before, after = metric.read(then), metric.read(now)
        if before is None or before <= 0 or after is None:
            continue
        limit = None
        if limits is not None and metric.limits:
            limit = limits[metric.limits[0].name]
        changes.append(
            metric_change(
                metric.title, before, after, limit, more_is_better=metric.more_is_better
            )
        )
    return changes


def _comparison(
    result: RowResult, verdict: Verdict, reason: str, *, failed: bool
) -> Comparison:
    return Comparison(id=result.id, verdict=verdict, reason=reason, failed=failed)
