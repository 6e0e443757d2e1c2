"""Pairs of processes: their losses decide, or a side that was not measured."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llama_perf.gate.pairs import Pairs, compare_pairs
from llama_perf.results.run import Comparison, Status, Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import CPU_ROW, GB, measured, unmeasured


def pairs_of(
    base: Sequence[float], head: Sequence[float], row: RowSpec = CPU_ROW
) -> Pairs:
    sides = {"base": base, "head": head}
    results = {
        side: [measured(row, tok_s=tok_s) for tok_s in rates]
        for side, rates in sides.items()
    }
    return Pairs(row=row, results=results)


def verdict(pairs: Pairs) -> Comparison:
    return compare_pairs([pairs])[0][1]


FAST, SLOW = [100.0, 101.0, 99.0, 100.5, 99.5], [95.0, 96.1, 94.2, 95.3, 94.4]
MINUTES = [100.0, 60.0, 80.0, 130.0, 90.0]
# Scattered by a tenth of a percent around what the base had in the same minute.
SAME = [100.1, 59.94, 80.0, 130.26, 89.82]
STEADY = [100.0, 100.001, 99.999, 100.0, 100.0]


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        (FAST, SLOW, Verdict.SLOWER),
        (SLOW, FAST, Verdict.FASTER),
        (MINUTES, SAME, Verdict.SAME),
        (MINUTES, [tok_s * 0.97 for tok_s in SAME], Verdict.SLOWER),
        # A loss of less than one percent is none.
        (STEADY, [tok_s * 0.995 for tok_s in STEADY], Verdict.SAME),
    ],
)
def test_losses_decide(base: list[float], head: list[float], expected: Verdict) -> None:
    comparison = verdict(pairs_of(base, head))
    assert comparison.verdict is expected
    assert comparison.failed is (expected is Verdict.SLOWER)
    if head is SLOW:
        assert "tok/s 100.00 -> 95.00 (-5.0%, limit 1.0%)" in comparison.reason
        assert comparison.reason.endswith("; 5 pairs, head slower in 5")


def test_a_larger_model_fails() -> None:
    pairs = pairs_of([100.0] * 3, [100.0] * 3)
    pairs.results["head"] = [measured(model_size_bytes=10**9)] * 3
    assert verdict(pairs).verdict is Verdict.LARGER


@pytest.mark.parametrize(
    ("base", "head", "expected", "failed"),
    [
        (Status.NOT_RUN, Status.MEASURED, Verdict.NO_BASELINE, True),
        (Status.MEASURED, Status.NOT_RUN, Verdict.NOT_RUN, True),
        (Status.NOT_RUN, Status.NOT_RUN, Verdict.NOT_RUN, False),
        (Status.INVALID, Status.MEASURED, Verdict.INVALID, True),
        (Status.MEASURED, Status.INVALID, Verdict.INVALID, True),
    ],
)
def test_a_missing_row(
    base: Status, head: Status, expected: Verdict, failed: bool
) -> None:
    results = {
        side: [measured() if status is Status.MEASURED else unmeasured(status, "why")]
        for side, status in (("base", base), ("head", head))
    }
    pairs = Pairs(row=CPU_ROW, results=results)
    shown, comparison = compare_pairs([pairs])[0]
    assert (comparison.verdict, comparison.failed) == (expected, failed)
    side = "base" if base is not Status.MEASURED else "head"
    assert comparison.reason == f"{side}: why"
    assert shown.measurement is None
    if expected is Verdict.NO_BASELINE:
        assert not compare_pairs([pairs], missing_fails=False)[0][1].failed


@pytest.mark.parametrize(
    ("peaks", "verdict"), [((1, 3, 1), Verdict.SAME), ((2, 2, 1), Verdict.LARGER)]
)
def test_pairs_compare_the_medians_of_their_sides(
    peaks: Sequence[int], verdict: Verdict
) -> None:
    base, head = (
        [measured(peak_memory_bytes=gb * GB) for gb in side]
        for side in ((1, 1, 3), peaks)
    )
    pairs = Pairs(row=CPU_ROW, results={"base": base, "head": head})
    ((_, comparison),) = compare_pairs([pairs])
    assert comparison.verdict is verdict
    assert not comparison.doubtful


def simulated(loss: float, deviation: float, draw: random.Random) -> list[bool]:
    """Which of twenty rows fail, whose heads lose so much."""

    def rates(factor: float) -> list[float]:
        return [100 * factor * math.exp(draw.gauss(0, deviation)) for _ in range(5)]

    rows = [replace(CPU_ROW, max_new_tokens=number) for number in range(1, 21)]
    pairs = [pairs_of(rates(1.0), rates(1 - loss), row) for row in rows]
    return [comparison.failed for _, comparison in compare_pairs(pairs)]


@pytest.mark.parametrize(
    ("deviation", "loss"), [(0.004, 0.025), (0.01, 0.05), (0.02, 0.10)]
)
def test_simulated_pairs_have_few_errors(deviation: float, loss: float) -> None:
    draw = random.Random(0)
    assert not any(any(simulated(0.0, deviation, draw)) for _ in range(100))
    failed = [fails for _ in range(5) for fails in simulated(loss, deviation, draw)]
    assert sum(failed) >= 0.9 * len(failed)
