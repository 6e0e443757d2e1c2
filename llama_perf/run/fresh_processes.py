"""Rows in several fresh processes each: to record, to confirm a loss, to compare two.

A process runs one row, so no row depends on those that were selected with it, and a
crash names its row. The rows take turns, so that a slow minute of the machine falls on
all of them. Two revisions or environments are compared in pairs of processes, one right
after the other: only the differences inside pairs are judged, without a baseline.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, geometric_mean

from llama_perf.errors import RecordError
from llama_perf.gate import judgements, thresholds
from llama_perf.gate.verdict import judge
from llama_perf.metrics import TOK_S
from llama_perf.results import baselines
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Comparison, Environment, RowResult, Status, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.options import RunRequest

MIN_PAIRS = 3
SIDES = ("base", "head")


def default_processes(rows: Sequence[RowSpec]) -> int:
    """How many processes a baseline of these rows runs each of them in."""
    return 10 if any(row.device == "cuda" for row in rows) else 5


def in_fresh_processes(
    rows: Sequence[RowSpec],
    *,
    processes: int,
    options: RunRequest,
    progress: Callable[[str], None],
) -> tuple[Environment, list[RowResult]]:
    """Run each row once, then each once more, and so on.

    Returns the environment and all results. A row that cannot run here is tried once.
    Raises RecordError where a row ends INVALID or the environment changes: the results
    are then no baseline.
    """
    devices = {row.device for row in rows}
    runnable, first = list(rows), None
    results = []
    for number in range(1, processes + 1):
        for row in list(runnable):
            progress(f"[process {number}/{processes}] {row.id}: ")
            ended = worker.run_in_process(row, options=options, devices=devices)
            result, environment = ended.result, ended.environment
            progress(f"{result.summary}\n")
            if result.status is Status.INVALID or environment is None:
                raise RecordError(
                    f"baseline: {row.id} is INVALID in process {number} of"
                    f" {processes}: {result.reason}"
                )
            first = first or environment
            if changed := first.changes(environment):
                raise RecordError(
                    "baseline: the environment changed between processes:"
                    f" {'; '.join(changed)}"
                )
            if result.status is Status.NOT_RUN and number == 1:
                runnable.remove(row)
            results.append(result)
    assert first is not None, "a selection has at least one row"
    return first, results


def confirmation(
    row: RowSpec,
    unquantized: RowSpec | None,
    *,
    options: RunRequest,
    progress: Callable[[str], None],
) -> list[judgements.Trial]:
    """Run the row in the fresh processes of a confirmation.

    Where the row is compared with the unquantized one, that runs as often, and they
    take turns at going first. The first process without a measurement ends it: fewer
    processes decide nothing.
    """
    trials: list[judgements.Trial] = []
    pair = [row] if unquantized is None else [row, unquantized]
    for number in range(1, thresholds.CONFIRM_PROCESSES + 1):
        progress(f"fresh process {number} of {thresholds.CONFIRM_PROCESSES}, ")
        results: dict[RowSpec | None, RowResult] = {}
        for one in pair if number % 2 else reversed(pair):
            ended = worker.run_in_process(one, options=options, devices=[row.device])
            results[one] = ended.result
        trial = judgements.Trial(row=results[row], unquantized=results.get(unquantized))
        trials.append(trial)
        if trial.missed is not None:
            break
    return trials


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


def measure_pairs(
    rows: Sequence[RowSpec],
    *,
    package: Path,
    python: Path,
    pairs: int,
    options: RunRequest,
    progress: Callable[[str], None],
) -> tuple[list[Pairs], dict[str, Environment]]:
    """Run one pair of each row, then another of each; also returns the environments.

    The base has the `llama_perf` in the folder `package` and is run by `python`, the
    head those of this process. The sides take turns at going first. Slowdowns are
    injected only into the head. A row that breaks, or that a side cannot run, does not
    run again.
    """
    measured = [Pairs(row=row, results={side: [] for side in SIDES}) for row in rows]
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
