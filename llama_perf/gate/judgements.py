"""The limits of a row; whether it became slower, and whether its peak memory grew.

One process can make a row suspicious; fresh processes then decide. A baseline of too
few processes has a fixed limit instead. Speed is judged by how much processes differ. A
peak belongs to a process: earlier rows leave holes in its heap and cached blocks in its
allocator, and the baseline's peaks come from fresh processes. Knows no verdict.
"""

from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from statistics import geometric_mean, median

from llama_perf.gate import thresholds
from llama_perf.gate.blocks import TARGET_LOSS, Decision
from llama_perf.gate.disturbed_rows import disturbance_of_trial, guarded, undisturbed
from llama_perf.gate.evidence import Confirmation, Judgement, PairsTest, Trial
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.thresholds import Spread, as_share, log_loss, relative_change
from llama_perf.metric import Metric, Rule
from llama_perf.metrics import LIMIT_FIELDS, METRICS, PEAK_MEMORY
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import MetricChange, RowResult
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import RowSpec

_BY_TITLE = {metric.title: metric for metric in METRICS}
# Families that round weights only, which have the same codes on every device.
_OF_WEIGHTS = {"int8wo", "float8wo", "fp6", "sparse-marlin", "int4wo", "uintx"}
_SPEED_RATIO = Metric("any other", "tok_s", Rule.SPEED, more_is_better=True)


def limits_of(row: RowSpec, project: ProjectLimits = ()) -> Limits:
    """A row's limits: its device's, then the project's, then its own."""
    is_drawn = _draws_codes(row)
    defaults = {
        name: limit.on(row.device, is_drawn=is_drawn)
        for name, limit in LIMIT_FIELDS.items()
    }
    overrides = [limits for glob, limits in project if fnmatchcase(row.id, glob)]
    return Limits(ChainMap(row.limits or {}, *reversed(overrides), defaults))


def _draws_codes(row: RowSpec) -> bool:
    """Whether a row may round as it runs: its activations, or keys and values.

    Where two codes are equally near, the last bit of a sum draws one of them, another
    one on another device. A scheme that is not known may do so.
    """
    if row.kv_cache is not None:
        return True
    scheme = row.quantization
    return scheme is not None and Scheme.parse(scheme).family not in _OF_WEIGHTS


def metric_change(
    title: str, before: float, now: float, limit: float | None = None
) -> MetricChange:
    """The change from `before` to `now`: worse by more than `limit`, a share.

    It is a difference, as is its limit, where the metric's is, and `before` > 0
    otherwise. A title that is no metric's is that of a ratio of speeds.
    """
    metric = _BY_TITLE.get(title, _SPEED_RATIO)
    moved = now - before if metric.difference else relative_change(now, before)
    loss = -moved if metric.more_is_better else moved
    return MetricChange(
        metric=title,
        baseline=before,
        current=now,
        change=moved,
        limit=limit,
        worse=limit is not None and loss > limit,
    )


def describe(moved: MetricChange) -> str:
    """A change in words: the value before, the value now, the change, the limit."""
    metric = _BY_TITLE.get(moved.metric, _SPEED_RATIO)
    limit = "" if moved.limit is None else f", limit {metric.shown_limit(moved.limit)}"
    return (
        f"{moved.metric} {metric.shown(moved.baseline)} ->"
        f" {metric.shown(moved.current)} ({metric.shown_change(moved.change)}{limit})"
    )


def decided(
    doubt: Judgement,
    looks: str,
    confirmation: Confirmation | None,
    values: Sequence[float],
    judge: Callable[[Sequence[float]], tuple[bool, str]],
) -> Judgement:
    """The judgement on a row that `looks` "slower" or "larger" after fresh processes.

    `confirmation` is None if it was off. `judge` says of the `values` that the fresh
    processes gave whether they are worse, and describes them.
    """
    needed = thresholds.CONFIRM_PROCESSES
    worse, undecided = False, confirmation is None or len(values) < needed
    if confirmation is None:
        end = f"looks {looks}; confirmation was off"
    elif undecided:
        trials = confirmation.fresh
        problems = (f": {trial.missed.summary}" for trial in trials if trial.missed)
        end = f"looks {looks}; {len(values)} of {needed} fresh processes finished"
        end += next(problems, "")
        if confirmation.disturbed:
            end += f"; {confirmation.disturbed}"
    else:
        worse, words = judge(values)
        end = f"confirmed by {len(values)} fresh processes: {words}"
        end = end if worse else f"not {end}"
    return _resolved(doubt, end, worse=worse, undecided=undecided)


def _resolved(doubt: Judgement, end: str, *, worse: bool, undecided: bool) -> Judgement:
    """The judgement on a doubtful row after its confirmation, which `end` describes."""
    return replace(
        doubt,
        changes=tuple(replace(change, worse=worse) for change in doubt.changes),
        reason=f"{doubt.reason}; {end}",
        suspicious=True,
        undecided=undecided,
    )


def _decided_by_pairs(
    doubt: Judgement, pairs: PairsTest, *, looks_slower: bool
) -> Judgement:
    """The judgement by pairs on a row that looks slower, or whose noise may hide it."""
    decision = pairs.test.decision
    worse, undecided = decision is Decision.SLOWER, decision is Decision.UNDECIDED
    end = pairs.words
    if undecided:
        end = f"undecided: {end}"
    elif not worse:
        before = (
            "not confirmed" if looks_slower else "noise may hide a loss, so pairs ran"
        )
        end = f"{before}: {end}"
    return replace(
        _resolved(doubt, end, worse=worse, undecided=undecided),
        faster=decision is Decision.FASTER,
        minimum_detectable=pairs.test.minimum_detectable,
    )


def stored_peak(stored: BaselineRow) -> float:
    """The median peak of the row's processes, in bytes."""
    return median(process.peak_memory_bytes for process in stored.samples)


def compare_peak(
    peak_bytes: float, stored: BaselineRow, limits: Limits | None
) -> Judgement:
    """Compare a peak with a stored row's. Without limits nothing is judged."""
    then = stored_peak(stored)
    if then <= 0:
        return Judgement()
    limit = None
    if limits is not None:
        limit = max(limits["peak_memory"], limits["peak_memory_bytes"] / then)
    change = metric_change(PEAK_MEMORY.title, then, peak_bytes, limit)
    return Judgement(changes=(change,), reason=describe(change))


def judge_peak(
    now: Measurement,
    stored: BaselineRow,
    limits: Limits,
    confirmation: Confirmation | None,
) -> Judgement:
    """Judge the peak of a measured row; fresh processes' median decides on a growth."""
    peak = compare_peak(now.peak_memory_bytes, stored, limits)
    if not peak.worse or len(stored.samples) < thresholds.MIN_PROCESSES:
        return peak

    def judge(peaks: Sequence[float]) -> tuple[bool, str]:
        (change,) = compare_peak(median(peaks), stored, limits).changes
        shown = PEAK_MEMORY.shown(change.current)
        return change.worse, f"{shown} ({change.change:+.1%})"

    trials = () if confirmation is None else confirmation.fresh
    results = (trial.row.measurement for trial in trials)
    peaks = [one.peak_memory_bytes for one in results if one is not None]
    return decided(peak, "larger", confirmation, peaks, judge)


def judge_speed(
    result: RowResult,
    baseline: SpeedBaseline,
    *,
    limits: Limits,
    unquantized: RowResult | None,
    confirmation: Confirmation | None,
) -> Judgement:
    """Judge the speed of a measured row: a loss on any basis makes it slower.

    `unquantized` is this run's result of the row in `baseline.unquantized`. The changes
    start with tok/s, which is reported on every basis.
    """
    own = Trial(row=result, unquantized=unquantized)
    disturbance = disturbance_of_trial(own, baseline.rows)
    if confirmation is not None:
        confirmation = undisturbed(confirmation, baseline.rows)
    known = {}
    for basis in Basis:
        stored, now = baseline.speeds[basis].get(result.id), own.speed(basis)
        if stored is not None and now is not None:
            known[basis] = (stored, now, baseline.spreads[basis].get(result.id))
    notes = baseline.judged_by(result.id, known)
    by_pairs = result.id in baseline.by_pairs
    judged = (
        _judged(basis, *known[basis], limits, confirmation, by_pairs=by_pairs)
        for basis in notes
    )
    speeds = [guarded(speed, disturbance, confirmation) for speed in judged]
    changes = [change for speed in speeds for change in speed.changes]
    notes_on = zip(speeds, notes.values(), strict=True)
    reasons = [f"{speed.reason}{note}" for speed, note in notes_on]
    if Basis.TOK_S is not next(iter(notes)):
        stored, now, _ = known[Basis.TOK_S]
        changes.insert(0, metric_change(Basis.TOK_S.value, geometric_mean(stored), now))
        reasons.insert(0, describe(changes[0]))
    detectable = [one.minimum_detectable for one in speeds if one.minimum_detectable]
    return Judgement(
        changes=tuple(changes),
        reason="; ".join(reasons),
        faster=all(speed.faster for speed in speeds),
        suspicious=any(speed.suspicious for speed in speeds),
        undecided=any(speed.undecided for speed in speeds),
        minimum_detectable=min(detectable, default=None),
    )


def _judged(
    basis: Basis,
    stored: Sequence[float],
    now: float,
    spread: Spread | None,
    limits: Limits,
    confirmation: Confirmation | None,
    *,
    by_pairs: bool,
) -> Judgement:
    then = geometric_mean(stored)
    if spread is None:
        limit = limits["tok_s"]
        change = metric_change(basis.value, then, now, limit)
        return Judgement(
            changes=(change,),
            reason=f"{describe(change)}; fixed limit: the baseline has"
            f" {len(stored)} of the {thresholds.MIN_PROCESSES} processes from"
            " which noise is estimated",
            faster=change.change > limit,
        )
    least, loss = limits["least_loss"], log_loss(now, then)
    losses = thresholds.losses(spread, least)
    change = metric_change(basis.value, then, now, losses.limit)
    speed = Judgement(
        changes=(replace(change, worse=False),),
        reason=describe(change),
        faster=-loss > thresholds.faster_limit(spread, least),
        minimum_detectable=losses.found,
    )
    looks_slower = loss > thresholds.screen_limit(spread, least)
    if not looks_slower and not by_pairs:
        return speed
    if by_pairs and loss <= thresholds.pairs_limit(spread, TARGET_LOSS, least):
        found = min(losses.found, max(TARGET_LOSS, least))
        return replace(speed, minimum_detectable=found)
    if not looks_slower and confirmation is None:
        return replace(speed, suspicious=True)
    if confirmation is not None and confirmation.pairs is not None:
        return _decided_by_pairs(speed, confirmation.pairs, looks_slower=looks_slower)

    def judge(speeds: Sequence[float]) -> tuple[bool, str]:
        mean, limit = geometric_mean(speeds), thresholds.confirm_limit(spread, least)
        digits = 2 if basis is Basis.TOK_S else 3
        return log_loss(mean, then) > limit, (
            f"{mean:.{digits}f} ({relative_change(mean, then):+.1%};"
            f" their mean confirms a loss above {as_share(limit):.1%})"
        )

    trials = () if confirmation is None else confirmation.fresh
    speeds = [one for one in (trial.speed(basis) for trial in trials) if one]
    judged = decided(speed, "slower", confirmation, speeds, judge)
    if confirmation is None or not confirmation.no_pairs:
        return judged
    return replace(judged, reason=f"{judged.reason}; {confirmation.no_pairs}")
