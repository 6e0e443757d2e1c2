"""Pairs of processes, one of each revision or environment: a verdict for each row.

Only the differences inside pairs are judged, without a baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

from llama_perf.gate import judgements, thresholds
from llama_perf.gate.verdict import judge
from llama_perf.metrics import TOK_S
from llama_perf.results import baselines
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Comparison, RowResult, Status, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec

MIN_PAIRS = 3
SIDES = ("base", "head")


@dataclass(slots=True)
class Pairs:
    """One row's results by side, each side's in the order of the pairs."""

    row: RowSpec
    results: dict[str, list[RowResult]]

    @property
    def missed(self) -> tuple[str, RowResult] | None:
        """The first result that was not measured, and its side."""
        ended = ((side, result) for side in SIDES for result in self.results[side])
        return next((one for one in ended if one[1].measurement is None), None)

    def measurements(self, side: str) -> list[Measurement]:
        """The measurements of a side's processes."""
        results = self.results[side]
        return [result.measurement for result in results if result.measurement]

    def rates(self, side: str) -> list[float]:
        """The tok/s of a side's processes."""
        return [measurement.tok_s for measurement in self.measurements(side)]

    @property
    def losses(self) -> list[float]:
        """The log of base over head of each pair: above 0 where the head is slower."""
        return list(map(thresholds.log_loss, self.rates("head"), self.rates("base")))


def compare_pairs(
    measured: Sequence[Pairs], *, missing_fails: bool = True, limits: ProjectLimits = ()
) -> list[tuple[RowResult, Comparison]]:
    """The head's result and a verdict for each row.

    A row is slower where the mean loss of its pairs is more than 1 % and more than
    their scatter explains (`thresholds.confirm_pairs_limit`). The deviations of all
    rows are shrunk together.
    """
    complete = [pairs for pairs in measured if pairs.missed is None]
    own = [thresholds.between_processes(pairs.losses) for pairs in complete]
    # A difference of two processes has twice the variance of one process.
    halved = [replace(one, deviation=one.deviation / math.sqrt(2)) for one in own]
    spreads = iter(thresholds.shrunk(halved))
    return [
        _judged(pairs, next(spreads), judgements.limits_of(pairs.row, limits))
        if pairs.missed is None
        else _not_measured(pairs, *pairs.missed, missing_fails=missing_fails)
        for pairs in measured
    ]


def _judged(
    pairs: Pairs, spread: thresholds.Spread, limits: Limits
) -> tuple[RowResult, Comparison]:
    base, head = (
        baselines.baseline_row(pairs.row, *pairs.measurements(side)) for side in SIDES
    )
    losses = pairs.losses
    loss = fmean(losses)
    limit = thresholds.confirm_pairs_limit(spread, limits["least_loss"])
    change = judgements.metric_change(
        TOK_S.title,
        geometric_mean(pairs.rates("base")),
        geometric_mean(pairs.rates("head")),
        thresholds.as_share(limit),
    )
    slower = sum(loss > 0 for loss in losses)
    speed = judgements.Judgement(
        changes=(replace(change, worse=loss > limit),),
        reason=f"{judgements.describe(change)}; {len(losses)} pairs, head slower in"
        f" {slower}",
        faster=-loss > limit,
    )
    result = replace(pairs.results["head"][0], measurement=head.measurement)
    peak = judgements.compare_peak(judgements.stored_peak(head), base, limits)
    return result, judge(result, base, speed, peak, limits)


def _not_measured(
    pairs: Pairs, side: str, result: RowResult, *, missing_fails: bool
) -> tuple[RowResult, Comparison]:
    verdict, failed = Verdict.INVALID, True
    if result.status is Status.NOT_RUN:
        verdict, failed = Verdict.NOT_RUN, bool(pairs.measurements("base"))
        if side == "base" and pairs.measurements("head"):
            verdict, failed = Verdict.NO_BASELINE, missing_fails
    reason = f"{side}: {result.reason}"
    shown = replace(result, reason=reason)
    return shown, Comparison(
        id=pairs.row.id, verdict=verdict, reason=reason, failed=failed
    )
