"""Measurement x baseline -> Comparison.

A plain threshold for each metric. What is absent or does not compare is never a
pass: it fails unless the caller allowed a missing baseline by name.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from llama_perf.stats import change


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Changes, as shares, from which on a metric counts as worse.

    `tok_s` is a loss of speed; the others are growths. A growth of the peak by no
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
) -> Comparison:
    """The verdict on one row, against the row of the same id in `baseline`."""
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
    return _judge(result, stored)


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


def _judge(result: RowResult, stored: BaselineRow) -> Comparison:
    assert result.measurement is not None, "only a measured row is judged"
    limits = LIMITS[result.row.device]
    now, then = result.measurement, stored.measurement
    changes = tuple(_changes(now, then, limits))
    by_metric = {each.metric: each for each in changes}
    speed = by_metric["tok/s"]
    others = _other_choices(now, then)
    if worse := [each for each in changes if each.worse]:
        verdict = Verdict.SLOWER if speed.worse else Verdict.LARGER
        reason = "; ".join([*map(describe, worse), *others])
        return _verdict(result, verdict, reason, failed=True, changes=changes)
    for metric, sign, better in _BETTER:
        moved = by_metric.get(metric)
        if moved and moved.limit is not None and sign * moved.change > moved.limit:
            reason = "; ".join([describe(moved), *others])
            return _verdict(result, better, reason, failed=False, changes=changes)
    reason = f"within its limits: {describe(speed)}"
    return _verdict(result, Verdict.SAME, reason, failed=False, changes=changes)


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


_BETTER = (
    ("tok/s", 1, Verdict.FASTER),
    ("peak memory", -1, Verdict.SMALLER),
    ("model size", -1, Verdict.SMALLER),
)


def _changes(now: Measurement, then: Measurement, limits: Limits) -> list[MetricChange]:
    rows: list[tuple[str, float | None, float | None, float | None, int]] = [
        ("tok/s", then.tok_s, now.tok_s, limits.tok_s, -1),
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
    changes = []
    for metric, before, current, limit, bad_sign in rows:
        if before is None or before <= 0 or current is None:
            continue
        moved = change(current, before)
        changes.append(
            MetricChange(
                metric=metric,
                baseline=before,
                current=current,
                change=moved,
                limit=limit,
                worse=limit is not None and bad_sign * moved > limit,
            )
        )
    return changes


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
