"""Measurement x baseline -> Comparison.

Speed is judged by how far the baseline's processes lie apart, in two steps: one process
makes a row suspicious, fresh ones decide. A baseline of too few processes and the other
metrics have plain limits. What is absent, undecided or does not compare is never a
pass: it fails unless the caller allowed it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llama_perf.records import (
    Baseline,
    BaselineRow,
    Comparison,
    Environment,
    Measurement,
    MetricChange,
    RowResult,
    Status,
    Verdict,
)
from llama_perf.speed import StoredSpeed, stored_speeds
from llama_perf.stats import (
    THRESHOLDS,
    as_share,
    change,
    confirm_limit,
    gain_limit,
    geometric_mean,
    log_loss,
    screen_limit,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Changes, as shares, from which on a metric counts as worse.

    `tok_s` is a loss of speed, for a baseline of too few processes; the others are
    growths. A growth of the peak by no
    more than `peak_memory_bytes` does not count either: the noise of a resident set
    is absolute.
    """

    tok_s: float
    peak_memory: float
    peak_memory_bytes: int
    model_size: float

    def peak_memory_limit(self, baseline_bytes: int) -> float:
        """The share from which on the peak counts as larger."""
        return max(self.peak_memory, self.peak_memory_bytes / max(baseline_bytes, 1))


# The CPU's are those of a shared machine: see docs/gate.md for what was seen there.
LIMITS = {
    "cuda": Limits(tok_s=0.05, peak_memory=0.02, peak_memory_bytes=0, model_size=0.001),
    "cpu": Limits(
        tok_s=0.25, peak_memory=0.10, peak_memory_bytes=32_000_000, model_size=0.001
    ),
}


def compare(
    result: RowResult,
    baseline: Baseline | None,
    *,
    same_device: bool = True,
    missing_fails: bool = True,
    undecided_fails: bool = True,
    fresh: Sequence[RowResult] | None = None,
) -> Comparison:
    """The verdict on one row, against the row of the same id in `baseline`.

    `fresh` are results of the row in fresh processes, None where none were run: a row
    whose `result` is suspicious is then UNDECIDED.
    """
    stored = _stored(result.id, baseline)
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
    if (other := _incomparable(result, stored, same_device=same_device)) is not None:
        return _verdict(result, Verdict.INCOMPARABLE, other, failed=True)
    speed = stored_speeds(baseline).get(result.id)
    judged = _judge(result, stored, _judge_speed(result, stored, speed, fresh))
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


def _stored(row_id: str, baseline: Baseline | None) -> BaselineRow | None:
    if baseline is None:
        return None
    return next((row for row in baseline.rows if row.id == row_id), None)


def _incomparable(
    result: RowResult, stored: BaselineRow, *, same_device: bool
) -> str | None:
    assert result.measurement is not None, "only a measured row is compared"
    if not same_device:
        return "the baseline was recorded on another device"
    if result.row.fingerprint != stored.fingerprint:
        return "the row changed under its id since the baseline was recorded"
    now, then = result.measurement.weights, stored.measurement.weights
    if now != then:
        return f"other weights: {then} in the baseline, {now} now"
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speed:
    """What is to be said of a row's tok/s; `told` follows its figures."""

    change: MetricChange
    faster: bool
    told: str = ""
    suspicious: bool = False
    undecided: bool = False
    minimum_detectable: float | None = None

    @property
    def reason(self) -> str:
        return describe(self.change) + self.told


def _judge_speed(
    result: RowResult,
    stored: BaselineRow,
    speed: StoredSpeed | None,
    fresh: Sequence[RowResult] | None,
) -> _Speed:
    assert result.measurement is not None, "only a measured row is judged"
    now = result.measurement.tok_s
    if speed is None:
        limit = LIMITS[result.row.device].tok_s
        moved = _moved("tok/s", stored.measurement.tok_s, now, limit, -1)
        count = len(stored.processes or ()) or 1
        told = (
            f"; a plain limit: the baseline has {count} of the"
            f" {THRESHOLDS.least_processes} processes that tell a loss from noise"
        )
        return _Speed(change=moved, faster=moved.change > limit, told=told)
    limit = screen_limit(speed.spread, speed.processes)
    loss = log_loss(now, speed.tok_s)
    moved = replace(_moved("tok/s", speed.tok_s, now, as_share(limit), -1), worse=False)
    found = _Speed(
        change=moved,
        faster=-loss > gain_limit(speed.spread, speed.processes),
        suspicious=loss > limit,
        minimum_detectable=speed.minimum_detectable,
    )
    return _confirmed(found, speed, fresh) if found.suspicious else found


def _confirmed(
    found: _Speed, speed: StoredSpeed, fresh: Sequence[RowResult] | None
) -> _Speed:
    """A suspicious speed after its fresh processes, where there are enough of them."""
    if fresh is None:
        told = "; suspicious, and fresh processes were not asked"
        return replace(found, undecided=True, told=told)
    rates = [each.measurement.tok_s for each in fresh if each.measurement is not None]
    if len(rates) < THRESHOLDS.confirm_processes:
        reason = next((each.told for each in fresh if each.measurement is None), "")
        told = (
            f"; suspicious, and {len(rates)} of {THRESHOLDS.confirm_processes} fresh"
            f" processes came to an end{reason and ': '}{reason}"
        )
        return replace(found, undecided=True, told=told)
    mean = geometric_mean(rates)
    limit = confirm_limit(speed.spread, speed.processes)
    slower = log_loss(mean, speed.tok_s) > limit
    again = change(mean, speed.tok_s)
    told = (
        f"; {'confirmed' if slower else 'not confirmed'} by {len(rates)} fresh"
        f" processes: {mean:.2f} ({again:+.1%}, limit {as_share(limit):.1%})"
    )
    return replace(found, told=told, change=replace(found.change, worse=slower))


def _judge(result: RowResult, stored: BaselineRow, speed: _Speed) -> Comparison:
    assert result.measurement is not None, "only a measured row is judged"
    now, then = result.measurement, stored.measurement
    limits = LIMITS[result.row.device]
    changes = (speed.change, *_changes(now, then, limits))
    others = _other_choices(now, then)

    def verdict(kind: Verdict, *reasons: str, failed: bool) -> Comparison:
        return replace(
            _verdict(result, kind, "; ".join(reasons), failed=failed, changes=changes),
            suspicious=speed.suspicious,
            minimum_detectable=speed.minimum_detectable,
        )

    larger = [describe(each) for each in changes[1:] if each.worse]
    if speed.change.worse:
        return verdict(Verdict.SLOWER, speed.reason, *larger, *others, failed=True)
    if larger:
        doubt = [speed.reason] if speed.undecided else []
        return verdict(Verdict.LARGER, *larger, *doubt, *others, failed=True)
    if speed.undecided:
        return verdict(Verdict.UNDECIDED, speed.reason, *others, failed=True)
    if speed.faster:
        return verdict(Verdict.FASTER, speed.reason, *others, failed=False)
    for moved in changes[1:]:
        if moved.limit is not None and -moved.change > moved.limit:
            return verdict(Verdict.SMALLER, describe(moved), *others, failed=False)
    return verdict(Verdict.SAME, f"within its limits: {speed.reason}", failed=False)


def _other_choices(now: Measurement, then: Measurement) -> list[str]:
    """Where autoquant chose otherwise than in the baseline, in words."""
    before = {
        (each.out_features, each.in_features): each.chosen
        for each in then.autoquant or ()
    }
    return [
        f"autoquant chose {each.chosen} and not {before[shape]} for"
        f" {each.out_features} x {each.in_features}"
        for each in now.autoquant or ()
        for shape in [(each.out_features, each.in_features)]
        if shape in before and before[shape] != each.chosen
    ]


def _changes(now: Measurement, then: Measurement, limits: Limits) -> list[MetricChange]:
    """All metrics but tok/s that both have."""
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
            "peak memory",
            then.peak_memory_bytes,
            now.peak_memory_bytes,
            limits.peak_memory_limit(then.peak_memory_bytes),
            1,
        ),
        (
            "model size",
            then.model_size_bytes,
            now.model_size_bytes,
            limits.model_size,
            1,
        ),
    ]
    return [
        _moved(metric, before, current, limit, bad_sign)
        for metric, before, current, limit, bad_sign in rows
        if before is not None and before > 0 and current is not None
    ]


def _moved(
    metric: str, before: float, current: float, limit: float | None, bad_sign: int
) -> MetricChange:
    moved = change(current, before)
    return MetricChange(
        metric=metric,
        baseline=before,
        current=current,
        change=moved,
        limit=limit,
        worse=limit is not None and bad_sign * moved > limit,
    )


def describe(moved: MetricChange) -> str:
    """One metric in words: baseline, current, change and limit."""
    in_gb = moved.metric in {"peak memory", "model size"}
    unit, scale = (" GB", 1e9) if in_gb else ("", 1.0)
    digits = 3 if in_gb else 2
    text = (
        f"{moved.metric} {moved.baseline / scale:.{digits}f}{unit} -> "
        f"{moved.current / scale:.{digits}f}{unit} ({moved.change:+.1%}"
    )
    return text + (f", limit {moved.limit:.1%})" if moved.limit is not None else ")")


def environment_changes(old: Environment, new: Environment) -> tuple[str, ...]:
    """Which fields differ, each as "field: old -> new"; the commit is left out."""
    return tuple(
        f"{name}: {getattr(old, name)} -> {getattr(new, name)}"
        for name in Environment.__dataclass_fields__
        if name != "commit" and getattr(old, name) != getattr(new, name)
    )


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
