"""The limits that follow from how much processes differ; pure functions.

A process gives one value, the median of its samples: its rounds depend on one another,
processes do not. Speeds are compared as logarithms of their ratios; a loss is positive.
Knows no torch and no records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from llama_perf.gate.noise import Spread, t_multiplier
from llama_perf.metrics import MIN_LOSS


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """When a row counts as slower. The multiples are those of a known deviation.

    A row is suspicious if it lost more than its `least_loss` (`min_loss` below) and
    more than `screen` deviations of the difference. It is slower if `confirm_processes`
    fresh processes confirm that by `confirm` deviations, or as many interleaved pairs
    by `confirm_pairs`. A baseline of fewer than `min_processes` gives no deviation.
    `power` is the probability of detecting a minimum detectable loss.

    `confirm` is larger than `confirm_pairs` because the stored mean is part of the
    screen and of the confirmation: an unlucky one makes both fail together. From 5
    stored processes on, 4.0 makes that no likelier than two independent steps at 2.5
    and 3.3.
    """

    screen: float = 2.5
    confirm: float = 4.0
    confirm_pairs: float = 3.3
    confirm_processes: int = 5
    min_processes: int = 3
    power: float = 0.90


THRESHOLDS = Thresholds()


def relative_change(current: float, baseline: float) -> float:
    """The change from `baseline`, which is positive, as a share of it."""
    return current / baseline - 1.0


def log_loss(current: float, baseline: float) -> float:
    """The lost speed, as the logarithm of baseline / current."""
    return math.log(baseline) - math.log(current)


def as_share(loss: float) -> float:
    """A log loss as a share of the baseline's speed."""
    return -math.expm1(-loss)


def screen_limit(spread: Spread, processes: int, min_loss: float = MIN_LOSS) -> float:
    """The log loss of one process above which a row is suspicious.

    `processes` are those of the baseline: their mean varies too.
    """
    return _limit(spread, THRESHOLDS.screen, 1 + 1 / processes, min_loss)


def confirm_limit(spread: Spread, processes: int, min_loss: float = MIN_LOSS) -> float:
    """The log loss above which the mean of fresh processes confirms a loss.

    The mean of n fresh processes minus that of R stored ones has the variance
    s^2 (1/n + 1/R).
    """
    variance = 1 / THRESHOLDS.confirm_processes + 1 / processes
    return _limit(spread, THRESHOLDS.confirm, variance, min_loss)


def confirm_pairs_limit(
    spread: Spread, pairs: int, min_loss: float = MIN_LOSS
) -> float:
    """The same for the mean of pairs, each of a base and a head process in turn."""
    return _limit(spread, THRESHOLDS.confirm_pairs, 2 / pairs, min_loss)


def faster_limit(spread: Spread, processes: int, min_loss: float = MIN_LOSS) -> float:
    """The log increase of one process's speed above which a row is faster.

    Nothing confirms it, so it takes as many deviations as a confirmation.
    """
    return _limit(spread, THRESHOLDS.confirm, 1 + 1 / processes, min_loss)


def _limit(spread: Spread, multiple: float, variance: float, min_loss: float) -> float:
    deviations = t_multiplier(multiple, spread.degrees) * math.sqrt(variance)
    return max(-math.log1p(-min_loss), deviations * spread.deviation)


def detection_chance(
    loss: float, spread: Spread, processes: int, min_loss: float = MIN_LOSS
) -> float:
    """A lower bound of the probability that a run finds a log loss of `loss`.

    It treats the deviation as the true one, and screen and confirmation as
    independent; they share the stored mean, so passing both is a little likelier.
    """
    chance = 1.0
    for fresh, limit in (
        (1, screen_limit),
        (THRESHOLDS.confirm_processes, confirm_limit),
    ):
        deviation = spread.deviation * math.sqrt(1 / fresh + 1 / processes)
        beyond = loss - limit(spread, processes, min_loss)
        chance *= NormalDist().cdf(beyond / deviation)
    return chance


def minimum_detectable(
    spread: Spread, processes: int, min_loss: float = MIN_LOSS
) -> float:
    """The smallest loss of speed, as a share, that a run detects with `power`."""
    from scipy.optimize import brentq

    def excess_chance(loss: float) -> float:
        return detection_chance(loss, spread, processes, min_loss) - THRESHOLDS.power

    low = screen_limit(spread, processes, min_loss)
    high = 2 * low
    while excess_chance(high) < 0:
        high *= 2
    return as_share(float(brentq(excess_chance, low, high, xtol=1e-12 * low)))
