"""Balanced blocks of two sides: after each block, whether the head became slower.

A block is two pairs of a base and a head; the base was built first in one of them, the
head in the other. So the order has no effect on a block's mean, nor on how much pairs
of the same order differ, and a t-test has two values of each block. It looks at them
after each block and stops as soon as it can decide. Knows no row, and runs nothing.

scipy is imported where it is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from statistics import fmean, variance
from typing import NamedTuple

from llama_perf.gate.thresholds import as_share
from llama_perf.metrics import MIN_LOSS

MIN_BLOCKS, MAX_BLOCKS = 2, 10
FALSE_ALARM = 5e-5
"""The chance that an unchanged row is called slower: 0.1 % in a run of 20 rows.

The chance that it is called faster is the same.
"""
TARGET_LOSS = 0.05
"""The loss, as a share, that must be excluded before a row is the same."""
EXCLUDED = 0.99
"""The confidence with which it is excluded."""
INTERVAL = 0.95
# Two blocks have two degrees of freedom, which decide nothing. So blocks are taken to
# differ by PRIOR_DEVIATION, with the weight of PRIOR_DEGREES; a noisier row outweighs
# that with its own. docs/gate-why.md has what was measured.
PRIOR_DEVIATION = 0.02
PRIOR_DEGREES = 4
_POWER = 0.90
# Of the trapezoidal rule; four times as many change a tail by less than 0.1 %.
_POINTS = 401


class Decision(Enum):
    """What the blocks so far say of the head."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "the same"
    UNDECIDED = "undecided"


class Block(NamedTuple):
    """The log losses of two pairs, by the side that was built first."""

    base_first: float
    head_first: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTest:
    """The test after some blocks. All are log losses: above 0 where the head is slower.

    `interval` is that of 95 %. Beyond `limit` the head is slower, or faster.
    `minimum_detectable` is the loss that nine tests in ten find, by these blocks.
    """

    blocks: int
    loss: float
    limit: float
    interval: tuple[float, float]
    minimum_detectable: float
    decision: Decision

    @property
    def change(self) -> float:
        """The change of the speed, as a share: below 0 where the head is slower."""
        # Without the sign of a zero.
        return math.expm1(-self.loss) + 0.0

    @property
    def change_interval(self) -> tuple[float, float]:
        """The interval of the change, as shares."""
        low, high = self.interval
        return math.expm1(-high), math.expm1(-low)


def block_test(
    blocks: Sequence[Block],
    *,
    min_loss: float = MIN_LOSS,
    target_loss: float = TARGET_LOSS,
    max_blocks: int = MAX_BLOCKS,
) -> BlockTest:
    """Test blocks, at least two and at most `max_blocks` of them.

    The head is slower where their mean is beyond `min_loss`, a share, and beyond what
    their scatter explains. It is the same where a loss of `target_loss` is excluded.
    """
    count = len(blocks)
    by_order = list(zip(*blocks, strict=True))
    loss = fmean(fmean(block) for block in blocks)
    # A block's mean varies by half as much as a pair.
    squares = (count - 1) * sum(variance(losses) for losses in by_order) / 2
    squares += PRIOR_DEGREES * PRIOR_DEVIATION**2
    deviation = math.sqrt(squares / _degrees(count))
    least, target = -math.log1p(-min_loss), -math.log1p(-target_loss)

    def error(number: int) -> float:
        return deviation / math.sqrt(number)

    def limit(number: int) -> float:
        return max(least, _multiples(number, max_blocks).bound * error(number))

    def same_below(number: int) -> float:
        return target - _multiples(number, max_blocks).excluding * error(number)

    decision = Decision.UNDECIDED
    if loss > limit(count):
        decision = Decision.SLOWER
    elif -loss > limit(count):
        decision = Decision.FASTER
    elif loss < same_below(count):
        decision = Decision.SAME
    # A loss is found where no look takes it for the same, until one is certain to
    # decide or is the last; each chance of missing it takes half of what is left.
    found = 0.0
    for number in range(MIN_BLOCKS, max_blocks + 1):
        is_last = number == max_blocks or limit(number) <= same_below(number)
        reached = limit(number) if is_last else same_below(number)
        missed = _multiples(number, max_blocks).missed * error(number)
        found = max(found, reached + missed)
        if is_last:
            break
    half = _multiples(count, max_blocks).half * error(count)
    return BlockTest(
        blocks=count,
        loss=loss,
        limit=limit(count),
        interval=(loss - half, loss + half),
        minimum_detectable=as_share(found),
        decision=decision,
    )


class _Multiples(NamedTuple):
    """Of the standard error of a mean of blocks, by what they are needed for."""

    bound: float
    excluding: float
    missed: float
    half: float


@cache
def _multiples(blocks: int, max_blocks: int) -> _Multiples:
    from scipy.special import stdtrit as t_quantile

    degrees = _degrees(blocks)
    # The t quantile of the tail that the normal bound has (Jennison and Turnbull 2000,
    # "Group sequential methods", section 11.4).
    return _Multiples(
        bound=-float(t_quantile(degrees, tail_of_a_look(max_blocks))),
        excluding=float(t_quantile(degrees, EXCLUDED)),
        missed=float(t_quantile(degrees, (1 + _POWER) / 2)),
        half=float(t_quantile(degrees, (1 + INTERVAL) / 2)),
    )


def _degrees(blocks: int) -> int:
    """The degrees of freedom: of each order's pairs, one goes to their mean."""
    return PRIOR_DEGREES + 2 * (blocks - 1)


@cache
def tail_of_a_look(max_blocks: int) -> float:
    """The chance of a false alarm that each look may have, with all of them together.

    It is the same for each look (Pocock 1977, "Group sequential methods in the design
    and analysis of clinical trials"): a clear loss stops the test at its first look.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    looks = range(MIN_BLOCKS, max_blocks + 1)

    def excess(bound: float) -> float:
        return crossing_chance([bound] * len(looks), list(looks)) - FALSE_ALARM

    return float(norm.sf(brentq(excess, 3.0, 6.0, xtol=1e-6)))


def crossing_chance(bounds: Sequence[float], blocks: Sequence[int]) -> float:
    """The chance that the standardized mean of normal values is ever above its bound.

    It is looked at after each number of `blocks`. By the recursion of Armitage,
    McPherson and Rowe (1969, "Repeated significance tests on accumulating data"): the
    density of the sum where no look has stopped, from one look to the next.
    """
    import numpy as np
    from scipy.stats import norm

    stopped, before = 0.0, 0
    # All of the sum's chance is at 0 before the first block.
    sums, weights = np.zeros(1), np.ones(1)
    for bound, count in zip(bounds, blocks, strict=True):
        scale = math.sqrt(count - before)
        highest = bound * math.sqrt(count)
        stopped += float(np.sum(weights * norm.sf((highest - sums) / scale)))
        grid = np.linspace(-9.0 * math.sqrt(count), highest, _POINTS)
        steps = np.full(_POINTS, grid[1] - grid[0])
        steps[[0, -1]] /= 2
        density = norm.pdf(grid[:, None] - sums[None, :], scale=scale) @ weights
        sums, weights, before = grid, steps * density, count
    return stopped
