"""Compares a measured row with its baseline and gives the verdict, with its reason.

Speed is judged by how much the baseline's processes differ, and a growth of peak memory
by its limit; in both, one process makes a row suspicious and fresh processes decide. A
baseline of too few processes, and every other metric, has a fixed limit. A row that
lost closeness is WORSE, whatever its speed. A row that is missing, undecided or not
comparable never passes: it fails unless the caller allows that. A baseline of another
kind of device judges nothing.
"""

from dataclasses import replace
from functools import partial
from operator import itemgetter

from llama_perf.gate import judgements
from llama_perf.gate.closeness import ROW_CHANGED, judge_closeness, other_weights
from llama_perf.gate.disturbed_rows import bandwidth_share, undisturbed
from llama_perf.gate.evidence import Confirmation, Judgement
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.gate.thresholds import relative_change
from llama_perf.metric import Rule
from llama_perf.metrics import TOK_S, metrics_by
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import ProcessSamples, samples_of
from llama_perf.results.run import Comparison, MetricChange, RowResult, Status, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec

# An operator that grew by less than this share of the step explains nothing.
_MIN_SHARE = 0.02
_MAX_OPERATORS = 3
_FAILED = {Verdict.SLOWER, Verdict.LARGER, Verdict.WORSE, Verdict.UNDECIDED}


def refusal(
    result: RowResult,
    baseline: SpeedBaseline | None,
    *,
    missing_fails: bool = True,
    fingerprint: str | None = None,
) -> Comparison | None:
    """The verdict on a row that cannot be compared with its stored row; else None.

    `fingerprint` is that of a result that was stored itself.
    """
    comparison = partial(Comparison, id=result.id)
    stored = None if baseline is None else baseline.rows.get(result.id)
    now, reason = result.measurement, str(result.reason)
    if result.status is Status.NOT_RUN:
        if stored is not None:
            reason += "; the baseline has this row, so it ran before"
        failed = stored is not None
        return comparison(verdict=Verdict.NOT_RUN, reason=reason, failed=failed)
    if now is None:
        return comparison(verdict=Verdict.INVALID, reason=reason, failed=True)
    if baseline is None or stored is None:
        reason = "the baseline of this device does not have this row"
        if baseline is None:
            reason = "no baseline for this device"
        verdict = Verdict.NO_BASELINE
        return comparison(verdict=verdict, reason=reason, failed=missing_fails)
    then = stored.measurement
    incomparable = partial(comparison, verdict=Verdict.INCOMPARABLE)
    if (fingerprint or result.row.fingerprint) != stored.fingerprint:
        return incomparable(reason=ROW_CHANGED, failed=True)
    if now.weights != then.weights:
        reason = other_weights(then.weights, now.weights)
        return incomparable(reason=reason, failed=True)
    key = baseline.stored.environment.device_key
    if key != baseline.environment.device_key:
        rate = judgements.metric_change(TOK_S.title, then.tok_s, now.tok_s)
        peak = judgements.compare_peak(now.peak_memory_bytes, stored, None)
        reason = f"the baseline is of another device, {key}, so nothing is judged:"
        return incomparable(
            reason=f"{reason} {judgements.describe(rate)}",
            failed=False,
            before=stored.before,
            changes=(rate, *peak.changes, *_other_changes(now, then, None)),
        )
    return None


def compare(
    result: RowResult,
    baseline: SpeedBaseline | None,
    *,
    project: ProjectLimits = (),
    unquantized: RowResult | None = None,
    missing_fails: bool = True,
    undecided_fails: bool = True,
    confirmation: Confirmation | None = None,
) -> Comparison:
    """The verdict on one row, compared with the stored row of its id.

    `baseline` is None if the device has none. `project` has a user's limits.
    `unquantized` is this run's result of the row in `baseline.unquantized`. Without a
    `confirmation` a suspicious row is UNDECIDED.
    """
    refused = refusal(result, baseline, missing_fails=missing_fails)
    if refused is not None or baseline is None:
        assert refused is not None, "without a baseline nothing is judged"
        return refused
    stored, now = baseline.rows[result.id], result.measurement
    assert now is not None, "only a measured row is judged"
    limits = judgements.limits_of(result.row, project)
    speed = judgements.judge_speed(
        result,
        baseline,
        limits=limits,
        unquantized=unquantized,
        confirmation=confirmation,
    )
    peak = judgements.judge_peak(now, stored, limits, confirmation)
    judged = judge(result, stored, speed, peak, limits)
    judged = replace(
        judged,
        bandwidth_share=bandwidth_share(now, stored),
        before=stored.before,
        processes=_processes(judged, confirmation, baseline),
    )
    if judged.failed and confirmation is not None and confirmation.pairs is not None:
        # Of the same minutes, and of no other environment.
        pairs = confirmation.pairs
        why = what_grew(result.row, pairs.head, pairs.base, slower=speed.worse)
        judged = replace(judged, why=why)
    if judged.verdict is Verdict.UNDECIDED and not undecided_fails:
        return replace(judged, failed=False)
    return judged


def _processes(
    judged: Comparison, confirmation: Confirmation | None, baseline: SpeedBaseline
) -> tuple[ProcessSamples, ...] | None:
    """The processes that decided on a doubtful row; None where its own one did.

    On the speed those decide that nothing disturbed, and the head's where pairs ran.
    """
    if confirmation is None:
        return None
    if confirmation.pairs is not None:
        return confirmation.pairs.processes or None
    if judged.suspicious:
        confirmation = undisturbed(confirmation, baseline.rows)
    results = (trial.row.measurement for trial in confirmation.fresh)
    return tuple(samples_of(one) for one in results if one is not None) or None


def not_compared(result: RowResult) -> Comparison:
    """The verdict if no comparison was asked for: an INVALID row still fails."""
    if result.status is not Status.MEASURED:
        return compare(result, None)
    return Comparison(
        id=result.id,
        verdict=Verdict.NOT_COMPARED,
        reason="no comparison asked for",
        failed=False,
    )


def judge(
    result: RowResult,
    stored: BaselineRow,
    speed: Judgement,
    peak: Judgement,
    limits: Limits,
) -> Comparison:
    """The verdict on a measured row whose speed and peak have been judged."""
    assert result.measurement is not None, "only a measured row is judged"
    now, then = result.measurement, stored.measurement
    others = _other_changes(now, then, limits)
    choices = other_choices(now, then)
    closeness = judge_closeness(
        now.closeness, then.closeness, limits, other_choices=choices
    )
    larger = [peak.reason] if peak.worse else []
    larger += [judgements.describe(change) for change in others if change.worse]
    larger += more_work(now, then, limits).values()
    smaller = [
        judgements.describe(change)
        for change in (*peak.changes, *others)
        if change.limit is not None and -change.change > change.limit
    ]
    # A growth that fresh processes refuted, or could not decide on.
    doubted_peak = [peak.reason] if peak.suspicious and not peak.worse else []
    remarks = [*doubted_peak, *choices, *closeness.remarks]
    doubt = [speed.reason] if speed.undecided else []
    # A larger row also says how a doubt about its speed was settled.
    doubted_speed = [speed.reason] if speed.suspicious else doubt
    if closeness.worse:
        verdict = Verdict.WORSE
        reasons = [*closeness.worse, speed.reason, *larger, *remarks]
    elif speed.worse:
        verdict, reasons = Verdict.SLOWER, [speed.reason, *larger, *remarks]
    elif larger:
        verdict, reasons = Verdict.LARGER, [*larger, *doubted_speed, *remarks]
    elif doubt or peak.undecided:
        verdict, reasons = Verdict.UNDECIDED, [*doubt, *remarks]
    elif speed.faster:
        verdict, reasons = Verdict.FASTER, [speed.reason, *remarks]
    elif smaller:
        reasons = [smaller[0], *choices, *closeness.remarks]
        verdict = Verdict.SMALLER
    else:
        within = f"within its limits: {speed.reason}"
        reasons = [within, *doubted_peak, *closeness.remarks]
        verdict = Verdict.SAME
    failed = verdict in _FAILED
    return Comparison(
        id=result.id,
        verdict=verdict,
        reason="; ".join(reasons),
        failed=failed,
        changes=(*speed.changes, *peak.changes, *others, *closeness.changes),
        why=what_grew(result.row, now, then, slower=speed.worse) if failed else (),
        suspicious=speed.suspicious,
        suspicious_peak=peak.suspicious,
        minimum_detectable=speed.minimum_detectable,
        unjudged_closeness=closeness.unjudged,
    )


def _other_changes(
    now: Measurement, then: Measurement, limits: Limits | None
) -> list[MetricChange]:
    """The changes of the metrics that are judged, if limits are given, at once."""
    changes = []
    for metric in metrics_by(Rule.REPORTED, Rule.GROWTH):
        before, after = metric.read(then), metric.read(now)
        if before is not None and before > 0 and after is not None:
            limit = None
            if limits is not None and metric.limits:
                share, *least = (limits[one.name] for one in metric.limits)
                limit = max(share, *(amount / before for amount in least), 0)
            changes.append(judgements.metric_change(metric.title, before, after, limit))
    return changes


def more_work(now: Measurement, then: Measurement, limits: Limits) -> dict[str, str]:
    """The counts that grew beyond their limits, in words by the metric's title.

    If autoquant chose other formats, the calls of a step are expected to differ.
    """
    problems = {}
    same_formats = not other_choices(now, then)
    for metric in metrics_by(Rule.WORK, Rule.COUNT):
        before, after = metric.read(then), metric.read(now)
        if before is None or after is None:
            continue
        limit = limits[metric.limits[0].name]
        words = f"{metric.title} {metric.shown(before)} -> {metric.shown(after)}"
        if metric.rule is Rule.COUNT:
            if after > before + limit:
                problems[metric.title] = words
        elif same_formats and before > 0 and relative_change(after, before) > limit:
            share = f"{relative_change(after, before):+.1%}"
            problems[metric.title] = f"{words} ({share}, limit {limit * 100:g}%)"
    return problems


def other_choices(now: Measurement, then: Measurement) -> list[str]:
    """The linear layers for which autoquant chose another format, each in words."""
    before = {
        (choice.out_features, choice.in_features): choice.chosen
        for choice in then.autoquant or ()
    }
    changes = []
    for choice in now.autoquant or ():
        shape = (choice.out_features, choice.in_features)
        if (old := before.get(shape, choice.chosen)) != choice.chosen:
            changes.append(
                f"autoquant chose {choice.chosen} instead of {old} for"
                f" {shape[0]} x {shape[1]}"
            )
    return changes


def what_grew(
    row: RowSpec, now: Measurement, then: Measurement, *, slower: bool
) -> tuple[str, ...]:
    """What a step of a failed row spends more on, in words, the largest growth first.

    A profiler's times are noisy and its counts exact: a row that is not `slower` shows
    only the operators that are called more often.
    """
    if now.step is None or then.step is None:
        return ()
    least = _MIN_SHARE * then.step.ms
    before = {operator.name: operator for operator in then.step.operators}
    # Only the longest operators are stored: any other one took no longer than those.
    shortest, new = 0.0, "new in a step"
    if sum(operator.calls for operator in before.values()) < then.step.calls:
        shortest = min((operator.ms for operator in before.values()), default=0.0)
        new = "new among the longest operators"
    growths = []
    for operator in now.step.operators:
        name, ms, calls = operator.name, operator.ms, operator.calls
        if (old := before.get(name)) is None:
            growth, is_shown = ms - shortest, ms - shortest > least
            text = f"{new}: {name}, {ms:.2f} ms in {calls:g} calls"
        else:
            growth = ms - old.ms
            is_shown = growth > least if slower else calls > old.calls
            text = f"grew: {name}, {old.ms:.2f} -> {ms:.2f} ms a step"
            if old.calls != calls:
                text += f" in {old.calls:g} -> {calls:g} calls"
        if is_shown:
            growths.append((growth, text))
    if slower and (outside_ms := _growth_outside_operators(row, now, then)):
        text = f"grew: the time outside operators, by {outside_ms:.2f} ms a step"
        growths.append((outside_ms, text))
    growths.sort(key=itemgetter(0), reverse=True)
    return tuple(text for _, text in growths[:_MAX_OPERATORS])


def _growth_outside_operators(
    row: RowSpec, now: Measurement, then: Measurement
) -> float | None:
    """By how many ms a step grew that no operator takes: in Python, or in waits.

    None if that is not most of the step's growth. The operators were timed in other
    steps than the speed.
    """
    if now.step is None or then.step is None:
        return None
    if now.decode_tok_s is None or then.decode_tok_s is None:
        return None
    growth_ms = 1e3 * row.batch_size * (1 / now.decode_tok_s - 1 / then.decode_tok_s)
    outside_ms = growth_ms - (now.step.ms - then.step.ms)
    return outside_ms if outside_ms > growth_ms / 2 > 0 else None
