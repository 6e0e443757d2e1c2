"""Pure functions on samples, and the limits that follow from them.

A process gives one value, the median over its samples: its rounds are not independent
of one another, processes are. Speeds are compared as logarithms of their ratios, and a
loss is a positive one. No torch, no records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from llama_perf.gate.noise import Spread, t_multiplier


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """When a row counts as slower; the multiples are of a deviation that is known.

    A row is suspicious where it lost more than `least_loss` of its speed and more than
    `screen` deviations of the difference, and slower where `confirm_processes` fresh
    processes confirm it by `confirm` deviations, or as many interleaved pairs by
    `confirm_pairs`. Fewer than `least_processes` in a baseline tell no deviation.
    `power` is the chance at which a minimum detectable effect is found.

    `confirm` is larger than `confirm_pairs` because the stored mean is in the screen
    and in the confirmation: an unlucky one makes both fail together. From 5 stored
    processes on, 4.0 makes that no likelier than two independent steps at 2.5 and 3.3.
    """

    least_loss: float = 0.01
    screen: float = 2.5
    confirm: float = 4.0
    confirm_pairs: float = 3.3
    confirm_processes: int = 5
    least_processes: int = 3
    power: float = 0.90

    @property
    def least_log_loss(self) -> float:
        """`least_loss` as the logarithm of a ratio."""
        return -math.log1p(-self.least_loss)


THRESHOLDS = Thresholds()


def change(current: float, baseline: float) -> float:
    """The change from `baseline`, which is positive, as a share of it."""
    return current / baseline - 1.0


def geometric_mean(rates: Sequence[float]) -> float:
    """The exponential of the mean logarithm of positive rates, one for each process."""
    return math.exp(fmean(map(math.log, rates)))


def log_loss(current: float, baseline: float) -> float:
    """The speed that was lost, as the logarithm of baseline / current."""
    return math.log(baseline) - math.log(current)


def as_share(loss: float) -> float:
    """A log loss as a share of the baseline's speed."""
    return -math.expm1(-loss)


def screen_limit(
    spread: Spread, processes: int, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The log loss of one process from which on a row is suspicious.

    `processes` are the baseline's: their mean varies as well.
    """
    return _limit(spread, thresholds.screen, 1 + 1 / processes, thresholds)


def confirm_limit(
    spread: Spread, processes: int, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The log loss of the mean of fresh processes that confirms a loss.

    The mean of n fresh processes less that of R stored ones has the variance
    s^2 (1/n + 1/R).
    """
    variance = 1 / thresholds.confirm_processes + 1 / processes
    return _limit(spread, thresholds.confirm, variance, thresholds)


def confirm_pairs_limit(
    spread: Spread, pairs: int, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The same for the mean of pairs, each of a base and a head process in turn."""
    variance = 2 / pairs
    return _limit(spread, thresholds.confirm_pairs, variance, thresholds)


def gain_limit(
    spread: Spread, processes: int, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The log gain of one process from which on a row is faster.

    Nothing confirms it, so it takes as many deviations as a confirmation.
    """
    return _limit(spread, thresholds.confirm, 1 + 1 / processes, thresholds)


def _limit(
    spread: Spread, multiple: float, variance: float, thresholds: Thresholds
) -> float:
    wide = t_multiplier(multiple, spread.degrees)
    return max(thresholds.least_log_loss, wide * spread.deviation * math.sqrt(variance))


def detection_chance(
    loss: float, spread: Spread, processes: int, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The chance, at least, that a row which lost `loss` is found slower in a run.

    It takes the deviation for the true one, and screen and confirmation for
    independent; they share the stored mean, so passing both is a little likelier.
    """
    screen = spread.deviation * math.sqrt(1 + 1 / processes)
    confirm = spread.deviation * math.sqrt(
        1 / thresholds.confirm_processes + 1 / processes
    )
    suspicious = (loss - screen_limit(spread, processes, thresholds)) / screen
    confirmed = (loss - confirm_limit(spread, processes, thresholds)) / confirm
    normal = NormalDist()
    return normal.cdf(suspicious) * normal.cdf(confirmed)


def minimum_detectable(
    spread: Spread, processes: int, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The least loss of speed, as a share, that a run finds with `power`."""
    low = screen_limit(spread, processes, thresholds)
    high = 2 * low
    while detection_chance(high, spread, processes, thresholds) < thresholds.power:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if detection_chance(middle, spread, processes, thresholds) < thresholds.power:
            low = middle
        else:
            high = middle
    return as_share(high)
