"""Two revisions or two environments beside each other, in pairs of processes.

What a minute of the machine does to one process of a pair it does to the other, so the
differences inside pairs are judged: no stored baseline is needed, and none is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from llama_perf.errors import SpecError
from llama_perf.gate import baselines
from llama_perf.gate.judge_memory import compare_peak, stored_peak
from llama_perf.gate.judge_speed import JudgedSpeed
from llama_perf.gate.limits import describe, limits_of, metric_change
from llama_perf.gate.noise import Spread, between_processes, shrunk
from llama_perf.gate.thresholds import (
    THRESHOLDS,
    as_share,
    confirm_pairs_limit,
    geometric_mean,
    log_loss,
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

LEAST_PAIRS, MOST_PAIRS = 3, 1000
SIDES = ("base", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Where a side's `llama_perf` lies, and the interpreter that runs it.

    None: those of this process.
    """

    package: Path | None = None
    python: Path | None = None

    def run(
        self, row: RowSpec, options: RunOptions, devices: frozenset[str]
    ) -> WorkerResult:
        """The row in a fresh process of this side."""
        worker = Worker(
            options=options, devices=devices, package=self.package, python=self.python
        )
        with closing(worker):
            return worker.run(row)


@dataclass(slots=True)
class Pairs:
    """What the processes of one row showed, each side's in the order of the pairs."""

    row: RowSpec
    results: dict[str, list[RowResult]] = field(
        default_factory=lambda: {side: [] for side in SIDES}
    )

    @property
    def missed(self) -> tuple[str, RowResult] | None:
        """The first result that was not measured, and its side."""
        return next(
            (
                (side, result)
                for side in SIDES
                for result in self.results[side]
                if result.measurement is None
            ),
            None,
        )

    def measurements(self, side: str) -> list[Measurement]:
        """What each process of a side measured."""
        found = (result.measurement for result in self.results[side])
        return [each for each in found if each is not None]

    def rates(self, side: str) -> list[float]:
        """tok/s of each process of a side."""
        return [each.tok_s for each in self.measurements(side)]

    @property
    def losses(self) -> list[float]:
        """The log loss of each pair."""
        return list(map(log_loss, self.rates("head"), self.rates("base")))


def check_pairs(pairs: int) -> None:
    """Raise SpecError for a number of pairs that decides nothing."""
    if not LEAST_PAIRS <= pairs <= MOST_PAIRS:
        raise SpecError("pairs", pairs, f"allowed: {LEAST_PAIRS} to {MOST_PAIRS}")


def measure_pairs(
    rows: Sequence[RowSpec],
    sides: Mapping[str, Side],
    *,
    pairs: int,
    options: RunOptions,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[list[Pairs], dict[str, Environment]]:
    """Each row in one pair, then each in another, and so on; and where sides ran.

    The sides take turns at going first, and slowdowns are injected into the head
    alone. A row that a side cannot run, or that breaks,
    is not run again.
    """
    found = [Pairs(row=row) for row in rows]
    environments: dict[str, Environment] = {}
    devices = frozenset(row.device for row in rows)
    for number in range(pairs):
        for each in found:
            for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                # The first pair tells of each side whether it can run the row.
                if each.missed is not None and number > 0:
                    continue
                progress(f"[pair {number + 1}/{pairs}] {each.row.id}, {side}: ")
                given = replace(options, slowdowns=()) if side == "base" else options
                ran = sides[side].run(each.row, given, devices)
                each.results[side].append(ran.result)
                if ran.environment is not None:
                    environments.setdefault(side, ran.environment)
                progress(f"{ran.result.summary}\n")
    return found, environments


def compare_pairs(
    found: Sequence[Pairs],
    *,
    missing_fails: bool = True,
    limits: ProjectLimits | None = None,
) -> list[tuple[RowResult, Comparison]]:
    """A result of the head and a verdict for each row.

    A row is slower where the mean loss of its pairs is more than 1 % and more than
    what their scatter explains (`stats.confirm_pairs_limit`); the deviations of all
    rows are shrunk together.
    """
    whole = [each for each in found if each.missed is None]
    spreads = shrunk([_spread(each.losses) for each in whole])
    spread_of = {
        each.row.id: spread for each, spread in zip(whole, spreads, strict=True)
    }
    return [
        _not_measured(each, missing_fails=missing_fails)
        if each.missed is not None
        else _judged(each, spread_of[each.row.id], limits_of(each.row, limits))
        for each in found
    ]


def _spread(losses: Sequence[float]) -> Spread:
    # A difference of two processes has twice the variance of one.
    both = between_processes(losses)
    return replace(both, deviation=both.deviation / math.sqrt(2))


def _judged(
    pairs: Pairs, spread: Spread, limits: Limits
) -> tuple[RowResult, Comparison]:
    base, head = (
        baselines.baseline_row(
            pairs.row,
            *(each.measurement for each in pairs.results[side] if each.measurement),
        )
        for side in SIDES
    )
    losses = pairs.losses
    thresholds = replace(THRESHOLDS, min_loss=limits["least_loss"])
    loss, limit = fmean(losses), confirm_pairs_limit(spread, len(losses), thresholds)
    change = metric_change(
        TOK_S.title,
        geometric_mean(pairs.rates("base")),
        geometric_mean(pairs.rates("head")),
        as_share(limit),
        more_is_better=TOK_S.more_is_better,
    )
    slower = sum(each > 0 for each in losses)
    speed = JudgedSpeed(
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
        first = {name: each[0].status for name, each in pairs.results.items() if each}
        if side == "base" and first.get("head") is Status.MEASURED:
            verdict, failed = Verdict.NO_BASELINE, missing_fails
        else:
            verdict, failed = Verdict.NOT_RUN, first.get("base") is Status.MEASURED
    shown = replace(result, reason=reason)
    return shown, Comparison(
        id=pairs.row.id, verdict=verdict, reason=reason, failed=failed
    )
