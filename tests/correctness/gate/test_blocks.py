"""The test of blocks: its bounds against scipy and published ones, its decisions."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import multivariate_normal, norm, t

from llama_perf.gate import blocks
from llama_perf.gate.blocks import (
    Block,
    BlockTest,
    Decision,
    block_test,
    crossing_chance,
)


@pytest.mark.parametrize(
    ("looks", "pocock", "o_brien_fleming"),
    [(2, 2.178, 1.977), (5, 2.413, 2.040), (8, 2.512, 2.072)],
)
def test_the_published_bounds(
    looks: int, pocock: float, o_brien_fleming: float
) -> None:
    """Jennison and Turnbull (2000), tables 2.1 and 2.3, two-sided 5 %."""
    numbers = range(1, looks + 1)
    falling = [o_brien_fleming * math.sqrt(looks / number) for number in numbers]
    for bounds in ([pocock] * looks, falling):
        # Half of it on one side, but for what crosses both.
        chance = crossing_chance(bounds, list(numbers))
        assert chance == pytest.approx(0.025, abs=2e-4)


@pytest.mark.parametrize("numbers", [[2, 3], [2, 3, 4], [1, 4, 8]])
@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0])
def test_the_recursion_against_the_multivariate_normal(
    numbers: Sequence[int], bound: float
) -> None:
    covariance = [[math.sqrt(min(i, j) / max(i, j)) for j in numbers] for i in numbers]
    below = multivariate_normal(cov=np.array(covariance)).cdf([bound] * len(numbers))
    chance = crossing_chance([bound] * len(numbers), numbers)
    assert chance == pytest.approx(1 - below, abs=5e-5)


def test_all_looks_together_have_the_chance_of_a_false_alarm() -> None:
    tail = blocks.tail_of_a_look(blocks.MAX_BLOCKS)
    bound = float(norm.isf(tail))
    looks = range(blocks.MIN_BLOCKS, blocks.MAX_BLOCKS + 1)
    chance = crossing_chance([bound] * len(looks), list(looks))
    assert chance == pytest.approx(blocks.FALSE_ALARM, rel=1e-3)
    assert blocks.FALSE_ALARM / len(looks) < tail < blocks.FALSE_ALARM
    # Such a tail is far from where quantiles are usually asked for.
    assert -stdtrit(5, tail) == pytest.approx(t.isf(tail, 5), rel=1e-9)


def judged(values: Sequence[float], **how: Any) -> BlockTest:
    """The test of blocks in which the order of building has no effect."""
    return block_test([Block(value, value) for value in values], **how)


SLOWER, FASTER, SAME = Decision.SLOWER, Decision.FASTER, Decision.SAME
CASES: list[tuple[list[float], Decision]] = [
    ([0.28, 0.285], SLOWER),
    ([-0.28, -0.285], FASTER),
    ([0.002, -0.004], SAME),
    # A loss of 5 % needs more than two blocks, and so does one that scatters.
    ([0.05, 0.052], Decision.UNDECIDED),
    ([0.05, 0.052, 0.049, 0.051, 0.05], SLOWER),
    ([0.12, 0.13, 0.125], SLOWER),
    ([0.20, -0.10], Decision.UNDECIDED),
    # Beyond what scatters, and less than one percent.
    ([0.009, 0.0091] * 4, SAME),
]


@pytest.mark.parametrize(("values", "decision"), CASES)
def test_decisions(values: list[float], decision: Decision) -> None:
    test = judged(values)
    assert test.decision is decision
    low, high = test.interval
    assert low < test.loss < high
    assert test.limit >= -math.log1p(-0.01)


def test_a_change_is_a_share_of_the_speed() -> None:
    test = judged([math.log(2)] * 2)
    assert test.change == pytest.approx(-0.5)
    low, high = test.change_interval
    assert low < -0.5 < high


def test_fewer_looks_have_a_lower_bound() -> None:
    values = [0.12, 0.08, 0.10, 0.09]
    assert judged(values, max_blocks=4).limit < judged(values).limit


def test_a_smaller_target_takes_longer_and_a_larger_least_loss_fails_less() -> None:
    values = [0.012, 0.013]
    assert judged(values).decision is SAME
    assert judged(values, target_loss=0.03).decision is Decision.UNDECIDED
    assert judged([0.28, 0.285], min_loss=0.35).decision is not SLOWER


@pytest.mark.parametrize("order", [0.0, 0.02, 0.19])
def test_the_order_of_building_has_no_effect(order: float) -> None:
    losses = [(0.031, 0.029), (0.033, 0.036), (0.027, 0.03)]
    blocks = [Block(base - order, head + order) for base, head in losses]
    test, without = block_test(blocks), block_test([Block(*pair) for pair in losses])
    assert test.loss == pytest.approx(without.loss)
    assert test.interval == pytest.approx(without.interval)


def test_the_interval_is_that_of_a_linear_model() -> None:
    """A loss and an order, fitted by least squares; and the assumed scatter."""
    draw = np.random.default_rng(3)
    losses = draw.normal([0.07, 0.01], 0.01, (5, 2))
    design = np.array([[1.0, sign] for _ in losses for sign in (1, -1)])
    fitted, (squares,), *_ = np.linalg.lstsq(design, losses.ravel(), rcond=None)
    degrees = blocks.PRIOR_DEGREES + 10 - 2
    squares += blocks.PRIOR_DEGREES * 2 * blocks.PRIOR_DEVIATION**2
    half = t.isf(0.025, degrees) * math.sqrt(squares / degrees / 10)
    test = block_test([Block(*pair) for pair in losses])
    assert test.loss == pytest.approx(fitted[0])
    assert test.interval == pytest.approx((fitted[0] - half, fitted[0] + half))


def drawn(draw: np.random.Generator, deviation: float, loss: float) -> Block:
    """A block whose mean has this deviation; one side is 3 % slower, built first."""
    mean = -math.log1p(-loss)
    by_order = [mean - 0.03, mean + 0.03]
    return Block(*draw.normal(by_order, deviation * math.sqrt(2)))


def run_until_decided(
    draw: np.random.Generator, deviation: float, loss: float
) -> tuple[Decision, float]:
    values = [drawn(draw, deviation, loss) for _ in range(2)]
    while True:
        test = block_test(values)
        ended = len(values) == blocks.MAX_BLOCKS
        if ended or test.decision is not Decision.UNDECIDED:
            return test.decision, test.minimum_detectable
        values.append(drawn(draw, deviation, loss))


@pytest.mark.parametrize("deviation", [0.003, 0.01, 0.015])
def test_simulated_blocks_find_five_percent(deviation: float) -> None:
    draw = np.random.default_rng(0)
    ended = [run_until_decided(draw, deviation, 0.05)[0] for _ in range(200)]
    assert ended.count(SLOWER) >= 190
    for _ in range(500):
        assert run_until_decided(draw, deviation, 0.0)[0] is SAME


def test_nine_in_ten_find_the_minimum_detectable_loss() -> None:
    draw = np.random.default_rng(1)
    least = [run_until_decided(draw, 0.01, 0.0)[1] for _ in range(200)]
    found = [run_until_decided(draw, 0.01, loss)[0] for loss in least]
    assert 0.9 * len(found) <= found.count(SLOWER)
    assert median(least) < 0.06


def test_an_interval_covers_the_loss() -> None:
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        values = [drawn(draw, 0.01, 0.02) for _ in range(4)]
        low, high = block_test(values).interval
        covered += low < -math.log1p(-0.02) < high
    assert covered >= 0.94 * 400
