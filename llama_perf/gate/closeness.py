"""Judges how close a row comes to its unquantized twin, beside the baseline's row.

A closeness repeats on one device, but for last bits. So one process decides, and
nothing confirms it. Knows no speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_perf.gate import judgements
from llama_perf.metric import Metric
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.closeness import CLOSENESS, closer
from llama_perf.results.measurement import Closeness
from llama_perf.results.run import Comparison, MetricChange, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec

FAR_DB = 60.0
"""No loss of dB counts above. Only rows that quantize nothing, or nearly nothing, are
so close, and the last bits of their products move such a figure by several dB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosenessJudgement:
    """The changes of a row's closeness; `unjudged` says why there are none."""

    changes: tuple[MetricChange, ...] = ()
    unjudged: str | None = None

    @property
    def worse(self) -> list[str]:
        """The changes beyond their limits, in words."""
        return [judgements.describe(one) for one in self.changes if one.worse]

    @property
    def remarks(self) -> list[str]:
        """What a reason says of a closeness that is not worse."""
        if self.unjudged is not None:
            return [f"closeness is not judged: {self.unjudged}"]
        gains = (judgements.describe(change) for _, change in closer(self.changes))
        return [f"closer than the baseline: {gain}" for gain in gains][:1]


ROW_CHANGED = "the row changed under its id since the baseline was recorded"


def other_weights(then: str, now: str) -> str:
    """Why a row that has other weights than the stored one is not compared."""
    return f"other weights: {then} in the baseline, {now} now"


def _incomparable(now: Closeness, then: Closeness) -> str:
    """Why a closeness is not comparable with an earlier one; empty where it is."""
    for name, old, new in (
        ("text", then.text, now.text),
        ("number of tokens", then.tokens, now.tokens),
    ):
        if old != new:
            return f"another {name}: {old} in the baseline, {new} now"
    return ""


def judge_closeness(
    now: Closeness | None,
    then: Closeness | None,
    limits: Limits,
    *,
    other_choices: Sequence[str] = (),
) -> ClosenessJudgement:
    """Judge a closeness; nothing is judged, or said, where none was measured.

    `other_choices` are the layers for which autoquant chose other formats, in words.
    """
    if now is None:
        return ClosenessJudgement()
    if then is None:
        return ClosenessJudgement(unjudged="the baseline has none")
    if other := _incomparable(now, then):
        return ClosenessJudgement(unjudged=other)
    if other_choices:
        return ClosenessJudgement(unjudged=other_choices[0])
    changes = (
        _change(metric, _read(metric, now), _read(metric, then), limits)
        for metric in CLOSENESS.values()
    )
    return ClosenessJudgement(changes=tuple(one for one in changes if one is not None))


def _read(metric: Metric, closeness: Closeness) -> float:
    """A metric's value; its source is a field of a measurement's closeness."""
    return float(getattr(closeness, metric.source.removeprefix("closeness.")))


def _change(
    metric: Metric, now: float, then: float, limits: Limits
) -> MetricChange | None:
    """The change of one figure, with its limit; None where there is no share of it."""
    if not metric.difference and then <= 0:
        return None
    limit = None
    if metric.limits:
        limit, *least = (limits[one.name] for one in metric.limits)
        limit = max(limit, *(amount / then for amount in least), 0)
        if metric.difference:
            limit = max(limit, then - FAR_DB)
    return judgements.metric_change(metric.title, then, now, limit)


def compare_closeness(
    row: RowSpec,
    now: Closeness,
    stored: BaselineRow | None,
    *,
    weights: str | None = None,
    project: ProjectLimits = (),
    missing_fails: bool = True,
) -> Comparison:
    """The verdict on a closeness that was measured without a speed.

    `stored` is the row of the same id in this device's baseline, None where there is
    none. `weights` are those that were read, as a measurement names them. It is WORSE,
    SAME, NO_BASELINE or INCOMPARABLE; the reason has the figures. Another text is not
    judged and does not fail: who names one knows.
    """
    then = None if stored is None else stored.measurement.closeness
    if stored is None or then is None:
        return Comparison(
            id=row.id,
            verdict=Verdict.NO_BASELINE,
            reason="the baseline of this device has no closeness of this row",
            failed=missing_fails,
        )
    incomparable, fails = _incomparable(now, then), False
    if row.fingerprint != stored.fingerprint:
        fails, incomparable = True, ROW_CHANGED
    elif weights is not None and weights != stored.measurement.weights:
        fails, incomparable = True, other_weights(stored.measurement.weights, weights)
    if incomparable:
        verdict = Verdict.INCOMPARABLE
        return Comparison(id=row.id, verdict=verdict, reason=incomparable, failed=fails)
    judged = judge_closeness(now, then, judgements.limits_of(row, project))
    verdict, words = Verdict.WORSE, judged.worse
    if not words:
        within = judgements.describe(judged.changes[0])
        verdict, words = Verdict.SAME, [f"within its limits: {within}"]
        words = judged.remarks or words
    return Comparison(
        id=row.id,
        verdict=verdict,
        reason="; ".join(words),
        failed=verdict is Verdict.WORSE,
        changes=judged.changes,
        before=stored.before,
    )
