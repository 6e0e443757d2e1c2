"""What a row does in a step, beside what it did: counts that noise does not touch.

And, where a row lost, which operators grew. Pure functions on measurements.
"""

from __future__ import annotations

from llama_perf.gate.limits import Limits
from llama_perf.gate.thresholds import change
from llama_perf.results.measurement import Measurement, OperatorTime

# Of a step's time, from here on an operator's growth explains something.
_EXPLAINS = 0.02
_MOST_TOLD = 3


def more_work(now: Measurement, then: Measurement, limits: Limits) -> list[str]:
    """In words, which counts of a step or of the compiler grew.

    Where autoquant chose other kernels the calls of a step are other ones by right.
    """
    found = []
    comparable = not other_choices(now, then)
    if now.step is not None and then.step is not None and comparable:
        before, after = then.step.calls, now.step.calls
        if before > 0 and change(after, before) > limits.calls:
            found.append(
                f"calls a step {before:.0f} -> {after:.0f}"
                f" ({change(after, before):+.1%}, limit {limits.calls * 100:g}%)"
            )
    for name in ("graph_breaks", "compilations"):
        before, after = getattr(then, name), getattr(now, name)
        if before is None or after is None:
            continue
        if after > before + getattr(limits, name):
            found.append(f"{name.replace('_', ' ')} {before} -> {after}")
    return found


def other_choices(now: Measurement, then: Measurement) -> list[str]:
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


def grown(now: Measurement, then: Measurement) -> tuple[str, ...]:
    """The operators of a step that grew most, in words, the most important first."""
    if now.step is None or then.step is None:
        return ()
    before = {each.name: each for each in then.step.operators}
    moved = [
        (each.ms - _ms(before.get(each.name)), each) for each in now.step.operators
    ]
    moved.sort(key=lambda pair: -pair[0])
    least = _EXPLAINS * then.step.ms
    told = [_words(each, before.get(each.name)) for more, each in moved if more > least]
    return tuple(told[:_MOST_TOLD])


def _ms(operator: OperatorTime | None) -> float:
    return 0.0 if operator is None else operator.ms


def _words(now: OperatorTime, then: OperatorTime | None) -> str:
    if then is None:
        return f"new in a step: {now.name}, {now.ms:.2f} ms in {now.calls:g} calls"
    text = f"grew: {now.name}, {then.ms:.2f} -> {now.ms:.2f} ms a step"
    if now.calls != then.calls:
        text += f" in {then.calls:g} -> {now.calls:g} calls"
    return text
