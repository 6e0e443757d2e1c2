"""Two revisions or environments compared with each other, in pairs of processes.

The processes of a pair run one right after the other, so a slow minute of the machine
slows both. Only the differences inside pairs are judged; no stored baseline is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, geometric_mean

from llama_perf.errors import SpecError
from llama_perf.gate import baselines
from llama_perf.gate.judgements import Judgement, compare_peak, stored_peak
from llama_perf.gate.limits import describe, limits_of, metric_change
from llama_perf.gate.thresholds import (
    Spread,
    as_share,
    between_processes,
    confirm_pairs_limit,
    log_loss,
    shrunk,
)
from llama_perf.gate.verdict import judge
from llama_perf.metrics import TOK_S
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec
from llama_perf.run.request import RunOptions
from llama_perf.run.worker import Worker, WorkerResult

MIN_PAIRS, MAX_PAIRS = 3, 1000
SIDES = ("base", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """The folder with a side's `llama_perf`, and the Python that runs it.

    None stands for those of this process.
    """

    package: Path | None = None
    python: Path | None = None

    def run(
        self, row: RowSpec, options: RunOptions, devices: frozenset[str]
    ) -> WorkerResult:
        """Run the row in a fresh process of this side."""
        worker = Worker(
            options=options, devices=devices, package=self.package, python=self.python
        )
        with closing(worker):
            return worker.run(row)


@dataclass(slots=True)
class Pairs:
    """One row's results by side, each side's in the order of the pairs."""

    row: RowSpec
    results: dict[str, list[RowResult]] = field(
        default_factory=lambda: {side: [] for side in SIDES}
    )

    @property
    def missed(self) -> tuple[str, RowResult] | None:
        """The first result that was not measured, and its side."""
        for side in SIDES:
            for result in self.results[side]:
                if result.measurement is None:
                    return side, result
        return None

    def measurements(self, side: str) -> list[Measurement]:
        """The measurements of a side's processes."""
        return [
            result.measurement
            for result in self.results[side]
            if result.measurement is not None
        ]

    def rates(self, side: str) -> list[float]:
        """The tok/s of a side's processes."""
        return [measurement.tok_s for measurement in self.measurements(side)]

    @property
    def losses(self) -> list[float]:
        """The log of base over head of each pair: above 0 where the head is slower."""
        return list(map(log_loss, self.rates("head"), self.rates("base")))


def check_pairs(pairs: int) -> None:
    """Raise SpecError for a number of pairs that is not allowed."""
    if not MIN_PAIRS <= pairs <= MAX_PAIRS:
        raise SpecError("pairs", pairs, f"allowed: {MIN_PAIRS} to {MAX_PAIRS}")


def measure_pairs(
    rows: Sequence[RowSpec],
    sides: Mapping[str, Side],
    *,
    pairs: int,
    options: RunOptions,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[list[Pairs], dict[str, Environment]]:
    """Run one pair of each row, then another of each; also returns the environments.

    The sides take turns at going first. Slowdowns are injected only into the head. A
    row that breaks, or that a side cannot run, does not run again.
    """
    measured = [Pairs(row=row) for row in rows]
    environments: dict[str, Environment] = {}
    devices = frozenset(row.device for row in rows)
    options_of = {"base": replace(options, slowdowns=()), "head": options}
    for number in range(pairs):
        for of_row in measured:
            for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                # The first pair shows of both sides whether they can run the row.
                if of_row.missed is not None and number > 0:
                    continue
                progress(f"[pair {number + 1}/{pairs}] {of_row.row.id}, {side}: ")
                ran = sides[side].run(of_row.row, options_of[side], devices)
                of_row.results[side].append(ran.result)
                if ran.environment is not None:
                    environments.setdefault(side, ran.environment)
                progress(f"{ran.result.summary}\n")
    return measured, environments


def compare_pairs(
    measured: Sequence[Pairs], *, missing_fails: bool = True, limits: ProjectLimits = ()
) -> list[tuple[RowResult, Comparison]]:
    """The head's result and a verdict for each row.

    A row is slower where the mean loss of its pairs is more than 1 % and more than
    their scatter explains (`thresholds.confirm_pairs_limit`). The deviations of all
    rows are shrunk together.
    """
    complete = [pairs for pairs in measured if pairs.missed is None]
    spreads = shrunk([_spread(pairs.losses) for pairs in complete])
    spread_of = {
        pairs.row.id: spread for pairs, spread in zip(complete, spreads, strict=True)
    }
    return [
        _not_measured(pairs, missing_fails=missing_fails)
        if pairs.missed is not None
        else _judged(pairs, spread_of[pairs.row.id], limits_of(pairs.row, limits))
        for pairs in measured
    ]


def _spread(losses: Sequence[float]) -> Spread:
    # A difference of two processes has twice the variance of one process.
    of_pairs = between_processes(losses)
    return replace(of_pairs, deviation=of_pairs.deviation / math.sqrt(2))


def _judged(
    pairs: Pairs, spread: Spread, limits: Limits
) -> tuple[RowResult, Comparison]:
    base, head = (
        baselines.baseline_row(pairs.row, *pairs.measurements(side)) for side in SIDES
    )
    losses = pairs.losses
    loss = fmean(losses)
    limit = confirm_pairs_limit(spread, len(losses), limits["least_loss"])
    change = metric_change(
        TOK_S.title,
        geometric_mean(pairs.rates("base")),
        geometric_mean(pairs.rates("head")),
        as_share(limit),
    )
    slower = sum(loss > 0 for loss in losses)
    speed = Judgement(
        changes=(replace(change, worse=loss > limit),),
        reason=f"{describe(change)}; {len(losses)} pairs, head slower in {slower}",
        faster=-loss > limit,
    )
    result = RowResult(
        id=pairs.row.id,
        row=pairs.row,
        status=Status.MEASURED,
        measurement=head.measurement,
    )
    peak = compare_peak(stored_peak(head), base, limits)
    return result, judge(result, base, speed, peak, limits)


def _not_measured(pairs: Pairs, *, missing_fails: bool) -> tuple[RowResult, Comparison]:
    assert pairs.missed is not None, "only for rows that were not measured"
    side, result = pairs.missed
    reason = f"{side}: {result.reason}"
    verdict, failed = Verdict.INVALID, True
    if result.status is Status.NOT_RUN:
        first = {
            name: results[0].status
            for name, results in pairs.results.items()
            if results
        }
        if side == "base" and first.get("head") is Status.MEASURED:
            verdict, failed = Verdict.NO_BASELINE, missing_fails
        else:
            verdict, failed = Verdict.NOT_RUN, first.get("base") is Status.MEASURED
    shown = replace(result, reason=reason)
    return shown, Comparison(
        id=pairs.row.id, verdict=verdict, reason=reason, failed=failed
    )
