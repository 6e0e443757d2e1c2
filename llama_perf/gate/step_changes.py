"""The work of a decoding step compared with the baseline's: counts without noise.

For a row that became slower: the operators that take longer.
"""

from __future__ import annotations

from operator import itemgetter

from llama_perf.gate.thresholds import relative_change
from llama_perf.metrics import Rule, metrics_by
from llama_perf.results.measurement import Measurement
from llama_perf.rows.limit_overrides import Limits

# An operator that grew by less than this share of the step explains nothing.
_MIN_SHARE = 0.02
_MAX_OPERATORS = 3


def more_work(now: Measurement, then: Measurement, limits: Limits) -> list[str]:
    """The counts that grew beyond their limits, each in words.

    If autoquant chose other formats, the calls of a step are expected to differ.
    """
    problems = []
    same_formats = not other_choices(now, then)
    for metric in metrics_by(Rule.WORK, Rule.COUNT):
        before, after = metric.read(then), metric.read(now)
        if before is None or after is None:
            continue
        limit = limits[metric.limits[0].name]
        words = f"{metric.title} {metric.shown(before)} -> {metric.shown(after)}"
        if metric.rule is Rule.COUNT:
            if after > before + limit:
                problems.append(words)
        elif same_formats and before > 0 and relative_change(after, before) > limit:
            share = f"{relative_change(after, before):+.1%}"
            problems.append(f"{words} ({share}, limit {limit * 100:g}%)")
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


def operators_that_grew(now: Measurement, then: Measurement) -> tuple[str, ...]:
    """The operators of a step that grew most, in words, the largest growth first."""
    if now.step is None or then.step is None:
        return ()
    before = {operator.name: operator for operator in then.step.operators}
    growths = []
    for operator in now.step.operators:
        name, ms, calls = operator.name, operator.ms, operator.calls
        if (old := before.get(name)) is None:
            text = f"new in a step: {name}, {ms:.2f} ms in {calls:g} calls"
        else:
            text = f"grew: {name}, {old.ms:.2f} -> {ms:.2f} ms a step"
            if old.calls != calls:
                text += f" in {old.calls:g} -> {calls:g} calls"
            ms -= old.ms
        growths.append((ms, text))
    growths.sort(key=itemgetter(0), reverse=True)
    least = _MIN_SHARE * then.step.ms
    return tuple(text for growth, text in growths[:_MAX_OPERATORS] if growth > least)
