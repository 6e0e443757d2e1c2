"""Two revisions or environments compared with each other, in pairs of processes.

The processes of a pair run one right after the other, so a slow minute of the machine
slows both. Only the differences inside pairs are judged; no stored baseline is used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, geometric_mean

from llama_perf.gate.judgements import (
    Judgement,
    compare_peak,
    describe,
    limits_of,
    metric_change,
    stored_peak,
)
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
from llama_perf.results import baselines
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.options import RunRequest

MIN_PAIRS = 3
SIDES = ("base", "head")


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
        results = self.results[side]
        return [result.measurement for result in results if result.measurement]

    def rates(self, side: str) -> list[float]:
        """The tok/s of a side's processes."""
        return [measurement.tok_s for measurement in self.measurements(side)]

    @property
    def losses(self) -> list[float]:
        """The log of base over head of each pair: above 0 where the head is slower."""
        return list(map(log_loss, self.rates("head"), self.rates("base")))


def measure_pairs(
    rows: Sequence[RowSpec],
    *,
    package: Path | None,
    python: Path | None,
    pairs: int,
    options: RunRequest,
    progress: Callable[[str], None],
) -> tuple[list[Pairs], dict[str, Environment]]:
    """Run one pair of each row, then another of each; also returns the environments.

    The base has the `llama_perf` in the folder `package` and is run by `python`; None
    means those of this process, which the head has. The sides take turns at going
    first. Slowdowns are injected only into the head. A row that breaks, or that a side
    cannot run, does not run again.
    """
    measured = [Pairs(row=row) for row in rows]
    environments: dict[str, Environment] = {}
    devices = {row.device for row in rows}
    base = partial(
        worker.run_in_process,
        options=replace(options, inject_slowdown=()),
        package=package,
        python=python,
    )
    sides = {"base": base, "head": partial(worker.run_in_process, options=options)}
    for number in range(pairs):
        for of_row in measured:
            for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                # The first pair shows of both sides whether they can run the row.
                if of_row.missed is not None and number > 0:
                    continue
                progress(f"[pair {number + 1}/{pairs}] {of_row.row.id}, {side}: ")
                ran = sides[side](of_row.row, devices=devices)
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
    spreads = iter(shrunk([_spread(pairs.losses) for pairs in complete]))
    return [
        _judged(pairs, next(spreads), limits_of(pairs.row, limits))
        if pairs.missed is None
        else _not_measured(pairs, *pairs.missed, missing_fails=missing_fails)
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
    limit = confirm_pairs_limit(spread, limits["least_loss"])
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
    result = replace(pairs.results["head"][0], measurement=head.measurement)
    peak = compare_peak(stored_peak(head), base, limits)
    return result, judge(result, base, speed, peak, limits)


def _not_measured(
    pairs: Pairs, side: str, result: RowResult, *, missing_fails: bool
) -> tuple[RowResult, Comparison]:
    verdict, failed = Verdict.INVALID, True
    if result.status is Status.NOT_RUN:
        runs = {
            name
            for name, results in pairs.results.items()
            if results and results[0].status is Status.MEASURED
        }
        if side == "base" and "head" in runs:
            verdict, failed = Verdict.NO_BASELINE, missing_fails
        else:
            verdict, failed = Verdict.NOT_RUN, "base" in runs
    shown = replace(result, reason=f"{side}: {result.reason}")
    return shown, Comparison(
        id=pairs.row.id, verdict=verdict, reason=str(shown.reason), failed=failed
    )
