"""Measurement x baseline -> Comparison.

Speed is judged by how far the baseline's processes lie apart, in two steps: one process
makes a row suspicious, fresh ones decide. They decide on peak memory too, by its plain
limit. A baseline of too few processes and the other metrics have plain limits. What is
absent, undecided or does not compare is never a pass: it fails unless the caller
allowed it by name. A baseline of another device, which has to be named to be compared
with at all, is reported and judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llama_perf.gate.confirmation import Trial
from llama_perf.gate.judge_memory import JudgedPeak, judge_peak, plain_peak
from llama_perf.gate.judge_speed import JudgedSpeed, judge_speed
from llama_perf.gate.limits import Limits, describe, limits_of, moved_by
from llama_perf.gate.speed_baseline import row_of
from llama_perf.gate.step_changes import grown, more_work, other_choices
from llama_perf.results.baseline import Baseline, BaselineRow
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Comparison, MetricChange, Verdict


def compare(
    result: RowResult,
    baseline: Baseline | None,
    *,
    environment: Environment | None = None,
    limits: Limits | None = None,
    unquantized: RowResult | None = None,
    missing_fails: bool = True,
    undecided_fails: bool = True,
    fresh: Sequence[Trial] | None = None,
) -> Comparison:
    """The verdict on one row, against the row of the same id in `baseline`.

    `environment` is where it was measured (None: where the baseline was), `limits` are
    the row's (None: its device's), `unquantized` is what this run measured of the row
    that `basis.unquantized_row` names. `fresh` are fresh processes, None where none
    were run: a row whose `result` is suspicious is then UNDECIDED.
    """
    stored = None if baseline is None else row_of(baseline, result.id)
    if result.status is Status.NOT_RUN:
        known = stored is not None
        reason = str(result.reason)
        if known:
            reason += "; the baseline has this row, so it ran before"
        return _verdict(result, Verdict.NOT_RUN, reason, failed=known)
    if result.measurement is None:
        return _verdict(result, Verdict.INVALID, str(result.reason), failed=True)
    if baseline is None:
        return _verdict(
            result,
            Verdict.NO_BASELINE,
            "no baseline for this device",
            failed=missing_fails,
        )
    if stored is None:
        return _verdict(
            result,
            Verdict.NO_BASELINE,
            "the baseline of this device lacks this row",
            failed=missing_fails,
        )
    if (other := _incomparable(result, stored)) is not None:
        return _verdict(result, Verdict.INCOMPARABLE, other, failed=True)
    limits = limits_of(result.row) if limits is None else limits
    where = baseline.environment if environment is None else environment
    if where.device_key != baseline.environment.device_key:
        return _reported(result, stored, baseline.environment)
    speed = judge_speed(
        result,
        baseline,
        environment=where,
        limits=limits,
        unquantized=unquantized,
        fresh=fresh,
    )
    peak = judge_peak(result.measurement, stored, limits, fresh)
    judged = judge(result, stored, speed, peak, limits)
    if judged.verdict is Verdict.UNDECIDED and not undecided_fails:
        judged = replace(judged, failed=False)
    return judged


def not_compared(result: RowResult) -> Comparison:
    """The verdict where no comparison was asked for: an invalid row still fails."""
    if result.status is Status.MEASURED:
        return _verdict(
            result, Verdict.NOT_COMPARED, "no comparison asked for", failed=False
        )
    return compare(result, None)


def _incomparable(result: RowResult, stored: BaselineRow) -> str | None:
    assert result.measurement is not None, "only a measured row is compared"
    if result.row.fingerprint != stored.fingerprint:
        return "the row changed under its id since the baseline was recorded"
    now, then = result.measurement.weights, stored.measurement.weights
    if now != then:
        return f"other weights: {then} in the baseline, {now} now"
    return None


def _reported(
    result: RowResult, stored: BaselineRow, recorded_on: Environment
) -> Comparison:
    """A row beside another device's: its changes, and no judgement."""
    assert result.measurement is not None, "only a measured row is compared"
    now, then = result.measurement, stored.measurement
    rate = moved_by("tok/s", then.tok_s, now.tok_s, None, -1)
    peak = plain_peak(now.peak_memory_bytes, stored, None)
    reason = (
        f"the baseline is of another device, {recorded_on.device_key}: reported, not"
        f" judged: {describe(rate)}"
    )
    return _verdict(
        result,
        Verdict.INCOMPARABLE,
        reason,
        failed=False,
        changes=(rate, *peak.changes, *_changes(now, then, None)),
    )


def judge(
    result: RowResult,
    stored: BaselineRow,
    speed: JudgedSpeed,
    peak: JudgedPeak,
    limits: Limits,
) -> Comparison:
    """The verdict on a measured row beside one of the same id.

    Its speed and its peak are judged; the rest is here.
    """
    assert result.measurement is not None, "only a measured row is judged"
    now, then = result.measurement, stored.measurement
    plain = _changes(now, then, limits)
    changes = (*speed.changes, *peak.changes, *plain)
    others = other_choices(now, then)

    def verdict(kind: Verdict, *reasons: str, failed: bool) -> Comparison:
        return replace(
            _verdict(result, kind, "; ".join(reasons), failed=failed, changes=changes),
            why=grown(now, then) if failed else (),
            suspicious=speed.suspicious,
            suspicious_peak=peak.suspicious,
            minimum_detectable=speed.minimum_detectable,
        )

    larger = [peak.reason] if peak.worse else []
    larger += [describe(each) for each in plain if each.worse]
    larger += more_work(now, then, limits)
    # A growth that fresh processes refuted, or were not there to judge.
    aside = [peak.reason] if peak.suspicious and not peak.worse else []
    told = [*aside, *others]
    if speed.worse:
        return verdict(Verdict.SLOWER, speed.reason, *larger, *told, failed=True)
    doubt = [speed.reason] if speed.undecided else []
    if larger:
        return verdict(Verdict.LARGER, *larger, *doubt, *told, failed=True)
    if doubt or peak.undecided:
        return verdict(Verdict.UNDECIDED, *doubt, *told, failed=True)
    if speed.faster:
        return verdict(Verdict.FASTER, speed.reason, *told, failed=False)
    for moved in (*peak.changes, *plain):
        if moved.limit is not None and -moved.change > moved.limit:
            return verdict(Verdict.SMALLER, describe(moved), *others, failed=False)
    within = f"within its limits: {speed.reason}"
    return verdict(Verdict.SAME, within, *aside, failed=False)


def _changes(
    now: Measurement, then: Measurement, limits: Limits | None
) -> list[MetricChange]:
    """The other metrics that both have; without limits none of them is judged."""
    rows: list[tuple[str, float | None, float | None, float | None, int]] = [
        ("decode tok/s", then.decode_tok_s, now.decode_tok_s, None, -1),
        (
            "time to first token (s)",
            then.time_to_first_token_s,
            now.time_to_first_token_s,
            None,
            1,
        ),
        (
            "allocated memory",
            then.peak_allocated_bytes,
            now.peak_allocated_bytes,
            None if limits is None else limits.allocated_memory,
            1,
        ),
        (
            "model size",
            then.model_size_bytes,
            now.model_size_bytes,
            None if limits is None else limits.model_size,
            1,
        ),
    ]
    return [
        moved_by(metric, before, current, limit, bad_sign)
        for metric, before, current, limit, bad_sign in rows
        if before is not None and before > 0 and current is not None
    ]


def _verdict(
    result: RowResult,
    verdict: Verdict,
    reason: str,
    *,
    failed: bool,
    changes: tuple[MetricChange, ...] = (),
) -> Comparison:
    return Comparison(
        id=result.id, verdict=verdict, reason=reason, failed=failed, changes=changes
    )
