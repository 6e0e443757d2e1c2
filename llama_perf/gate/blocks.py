"""Balanced blocks of two sides: after each block, whether the head became slower.

A block is two pairs of a base and a head; the base was built first in one of them, the
head in the other. Its value is the mean log loss of its pairs, so the order has no
effect on it, and blocks are the independent values of a t-test. The test looks at them
after each block and stops as soon as it can decide. Knows no row, and runs nothing.

scipy is imported where it is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from statistics import fmean, variance

from llama_perf.gate.thresholds import as_share
from llama_perf.metrics import MIN_LOSS

MIN_BLOCKS, MAX_BLOCKS = 2, 8
FALSE_ALARM = 5e-5
"""The chance that an unchanged row is called slower: 0.1 % in a run of 20 rows.

The chance that it is called faster is the same.
"""
TARGET_LOSS = 0.05
"""The loss, as a share, that must be excluded before a row is the same."""
EXCLUDED = 0.99
"""The confidence with which it is excluded."""
INTERVAL = 0.95
# Two blocks have one degree of freedom, which decides nothing. So blocks are taken to
# differ by PRIOR_DEVIATION, with the weight of PRIOR_DEGREES more blocks; a noisier row
# outweighs that with its own. docs/gate-why.md has what was measured.
PRIOR_DEVIATION = 0.015
PRIOR_DEGREES = 3
_POWER = 0.90
# Of the trapezoidal rule; four times as many change a tail by less than 0.1 %.
_POINTS = 401


class Decision(Enum):
    """What the blocks so far say of the head."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "the same"
    UNDECIDED = "undecided"


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
    values: Sequence[float],
    *,
    min_loss: float = MIN_LOSS,
    target_loss: float = TARGET_LOSS,
    max_blocks: int = MAX_BLOCKS,
) -> BlockTest:
    """Test the log losses of blocks, at least two and at most `max_blocks` of them.

    The head is slower where their mean is beyond `min_loss`, a share, and beyond what
    their scatter explains. It is the same where a loss of `target_loss` is excluded.
    """
    from scipy.special import stdtrit as t_quantile

    count = len(values)
    loss, degrees = fmean(values), PRIOR_DEGREES + count - 1
    squares = PRIOR_DEGREES * PRIOR_DEVIATION**2 + (count - 1) * variance(values)
    deviation = math.sqrt(squares / degrees)

    def error(blocks: int) -> float:
        return deviation / math.sqrt(blocks)

    def limit(blocks: int) -> float:
        # The t quantile of the tail that the normal bound has (Jennison and Turnbull
        # 2000, "Group sequential methods", section 11.4).
        freedom = PRIOR_DEGREES + blocks - 1
        multiple = -float(t_quantile(freedom, tail_of_a_look(max_blocks)))
        return max(-math.log1p(-min_loss), multiple * error(blocks))

    target = -math.log1p(-target_loss)
    excluding = float(t_quantile(degrees, EXCLUDED)) * error(count)
    half = float(t_quantile(degrees, (1 + INTERVAL) / 2)) * error(count)
    decision = Decision.UNDECIDED
    if loss > limit(count):
        decision = Decision.SLOWER
    elif -loss > limit(count):
        decision = Decision.FASTER
    elif loss + excluding < target:
        decision = Decision.SAME
    # A loss is missed where the last look does not find it, or where this one excluded
    # the target by chance: each may take half of the chance that is left.
    missed = float(t_quantile(degrees, (1 + _POWER) / 2))
    found = limit(max_blocks) + missed * error(max_blocks)
    if decision is not Decision.UNDECIDED:
        found = max(found, target - excluding + missed * error(count))
    return BlockTest(
        blocks=count,
        loss=loss,
        limit=limit(count),
        interval=(loss - half, loss + half),
        minimum_detectable=as_share(found),
        decision=decision,
    )


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
