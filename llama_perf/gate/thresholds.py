"""How much a row's speed differs between processes, and the limits that follow.

A process gives one value, the median of its samples: its rounds depend on one another,
processes do not. Speeds are compared as logarithms of their ratios; a loss is positive.
A row has few processes, so its own variance is uncertain. All rows of a baseline
together show how much such variances can be trusted.

scipy is imported where it is used: listing rows does not wait for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, variance

from llama_perf.metrics import MIN_LOSS
from llama_perf.results.processes import log_deviation
from llama_perf.words import loss_found


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A deviation of log speeds between processes; infinite `degrees`: it is known."""

    deviation: float
    degrees: float
    processes: int


def between_processes(log_rates: Sequence[float]) -> Spread:
    """The sample deviation of one value for each process, at least two."""
    count = len(log_rates)
    deviation = log_deviation(log_rates)
    return Spread(deviation=deviation, degrees=count - 1, processes=count)


def shrunk(spreads: Sequence[Spread]) -> list[Spread]:
    """Each row's spread drawn toward the common one.

    The squeezed variance s'^2 = (d0 s0^2 + d s^2) / (d0 + d) of Smyth (2004, "Linear
    models and empirical Bayes methods", SAGMB 3:1, section 6; the R package limma). s
    and d = processes - 1 are the row's own. The common s0 and its weight d0 follow from
    the scatter of the rows' log variances: infinite if chance explains all of it, near
    0 if it is wide. There are d0 + d degrees of freedom, at most those of all rows.
    """
    if len(spreads) < 2:
        return list(spreads)
    common_variance, weight = _prior(spreads)
    max_degrees = sum(spread.degrees for spread in spreads)
    squeezed = []
    for spread in spreads:
        # The share of a row's own variance, 0 if `weight` is infinite.
        own = spread.degrees / (weight + spread.degrees)
        squares = (1 - own) * common_variance + own * spread.deviation**2
        degrees = min(weight + spread.degrees, max_degrees)
        squeezed.append(replace(spread, deviation=math.sqrt(squares), degrees=degrees))
    return squeezed


def _prior(spreads: Sequence[Spread]) -> tuple[float, float]:
    """(s0^2, d0) by Smyth's moments of log variances, without their bias and noise."""
    from scipy.special import digamma, zeta

    halves = [spread.degrees / 2 for spread in spreads]
    logs = [
        2 * math.log(spread.deviation) + (math.log(spread.degrees / 2) - bias)
        for spread, bias in zip(spreads, digamma(halves).tolist(), strict=True)
    ]
    # The noise of each is the trigamma function, Hurwitz's zeta function at 2.
    excess = variance(logs) - fmean(zeta(2.0, halves))
    if excess <= 0:
        return math.exp(fmean(logs)), math.inf
    half = inverse_trigamma(excess)
    bias = float(digamma(half)) - math.log(half)
    return math.exp(fmean(logs) + bias), 2 * half


def inverse_trigamma(value: float) -> float:
    """The x > 0 whose trigamma, the second derivative of log gamma, is `value` > 0.

    1/x < trigamma(x) < 1/x + 1/x^2 gives the two bounds of the search.
    """
    from scipy.optimize import brentq
    from scipy.special import zeta

    low, high = 1 / value, 1 / value + 1 / math.sqrt(value)
    return float(brentq(lambda x: zeta(2.0, x) - value, low, high, xtol=1e-12 * low))


def t_multiplier(normal: float, degrees: float) -> float:
    """Student's t at the tail of the normal quantile `normal`, which is 0 or more.

    The approximation of Wallace (1959, "Bounds on normal approximations to Student's
    and the chi-square distributions"), inverted. From 4 degrees on it is within 5 % of
    the exact quantile, and never too small: the gate's limits were chosen with it.
    """
    if math.isinf(degrees):
        return normal
    scaled = normal * (8 * degrees + 3) / (8 * degrees + 1)
    return math.sqrt(degrees * math.expm1(scaled**2 / degrees))


# A row is suspicious if it lost more than its `least_loss` (`min_loss` below) and more
# than SCREEN deviations of the difference. It is slower if CONFIRM_PROCESSES fresh
# processes confirm that by CONFIRM deviations. A baseline of fewer than MIN_PROCESSES
# gives no deviation. POWER is the probability of detecting a minimum detectable loss.
#
# The stored mean is part of the screen and of the confirmation: an unlucky one makes
# both fail together. From 5 stored processes on, a CONFIRM of 4.0 makes that no
# likelier than two independent steps at 2.5 and 3.3.
SCREEN = 2.5
CONFIRM = 4.0
CONFIRM_PROCESSES = 5
MIN_PROCESSES = 3
POWER = 0.90
# A loss that pairs have to find comes before them, and they find it, 19 times in 20
# each: together with POWER.
_EXCLUDING = NormalDist().inv_cdf((1 + POWER) / 2)


def relative_change(current: float, baseline: float) -> float:
    """The change from `baseline`, which is positive, as a share of it."""
    return current / baseline - 1.0


def log_loss(current: float, baseline: float) -> float:
    """The lost speed, as the logarithm of baseline / current."""
    return math.log(baseline) - math.log(current)


def as_share(loss: float) -> float:
    """A log loss as a share of the baseline's speed."""
    return -math.expm1(-loss)


def screen_limit(spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """The log loss above which a row is suspicious; the stored mean varies too."""
    return _limit(spread, SCREEN, 1 + 1 / spread.processes, min_loss)


def pairs_limit(
    spread: Spread, target_loss: float, min_loss: float = MIN_LOSS
) -> float:
    """The log loss above which pairs decide on a row, where they can.

    It is at most `screen_limit`. Below it the stored figures exclude a loss of
    `target_loss`, a share, with a confidence of 95 %. It is negative where they are too
    noisy for that.
    """
    hidden = _noise(spread, _EXCLUDING, 1 + 1 / spread.processes)
    target = -math.log1p(-max(target_loss, min_loss))
    return min(screen_limit(spread, min_loss), target - hidden)


def confirm_limit(spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """The log loss above which the mean of fresh processes confirms a loss."""
    # The mean of n fresh processes minus that of R stored ones has this variance.
    variance = 1 / CONFIRM_PROCESSES + 1 / spread.processes
    return _limit(spread, CONFIRM, variance, min_loss)


def faster_limit(spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """The log gain above which a row is faster: nothing confirms it, so it is large."""
    return _limit(spread, CONFIRM, 1 + 1 / spread.processes, min_loss)


def difference(
    before: Spread | None, after: Spread | None, processes: tuple[int, int]
) -> Spread | None:
    """The spread of the difference of two recordings' mean log speeds; None: unknown.

    `processes` are how many each has. A mean of n log speeds of deviation s has the
    variance s^2 / n, and recordings are independent: with n and m processes the
    difference has s^2 / n + t^2 / m. Recordings may be of days of other noise, so s and
    t are not pooled. The degrees of freedom are those of the side that has fewer: with
    these a limit is never too small (Hsu 1938, "Contributions to the theory of
    Student's t-test as applied to the problem of two samples"). A recording of too few
    processes has no deviation of its own. It takes the other one's, as a process of a
    run takes the baseline's.
    """
    known = [spread for spread in (before, after) if spread is not None]
    if not known:
        return None
    own = (before or known[0], after or known[0])
    terms = zip(own, processes, strict=True)
    variance = sum(spread.deviation**2 / count for spread, count in terms)
    return Spread(
        deviation=math.sqrt(variance),
        degrees=min(spread.degrees for spread in known),
        processes=1,
    )


def difference_limit(spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """The log loss above which a recording is slower, by the spread of `difference`.

    Nothing runs that could confirm it. So it takes as many deviations as a
    confirmation, whose chance of a false alarm it then has: with one process after R
    stored ones it is `faster_limit`, with five `confirm_limit`.
    """
    return _limit(spread, CONFIRM, 1, min_loss)


def difference_found(spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """The loss of speed, a share, that `difference_limit` finds with POWER."""
    beyond = NormalDist().inv_cdf(POWER) * spread.deviation
    return as_share(difference_limit(spread, min_loss) + beyond)


def _limit(spread: Spread, multiple: float, variance: float, min_loss: float) -> float:
    return max(-math.log1p(-min_loss), _noise(spread, multiple, variance))


def _noise(spread: Spread, multiple: float, variance: float) -> float:
    """So many deviations of a difference, whose variance is in those of a process."""
    deviations = t_multiplier(multiple, spread.degrees) * math.sqrt(variance)
    return deviations * spread.deviation


def found_in_words(share: float) -> str:
    """What that loss is, in a sentence."""
    found = loss_found(share)
    if found == "none":
        return "no loss is found as often as 9 times in 10"
    return f"a loss of {found} is found 9 times in 10"


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """The two losses of speed, as shares, that say what stored figures can show.

    Above `limit` a row looks slower in one run; `found` is found nine times in ten.
    """

    limit: float
    found: float

    def __str__(self) -> str:
        return f"limit {self.limit:.1%}, and {found_in_words(self.found)}"


def losses(spread: Spread, min_loss: float = MIN_LOSS) -> Losses:
    """Both losses of a row with this spread."""
    return Losses(
        limit=as_share(screen_limit(spread, min_loss)),
        found=minimum_detectable(spread, min_loss),
    )


def detection_chance(loss: float, spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """A lower bound of the probability that a run finds a log loss of `loss`.

    It treats screen and confirmation as independent; they share the stored mean.
    """
    chance = 1.0
    for fresh, limit in ((1, screen_limit), (CONFIRM_PROCESSES, confirm_limit)):
        deviation = spread.deviation * math.sqrt(1 / fresh + 1 / spread.processes)
        chance *= NormalDist().cdf((loss - limit(spread, min_loss)) / deviation)
    return chance


def minimum_detectable(spread: Spread, min_loss: float = MIN_LOSS) -> float:
    """The smallest loss of speed, as a share, that a run detects with POWER."""
    from scipy.optimize import brentq

    def excess_chance(loss: float) -> float:
        return detection_chance(loss, spread, min_loss) - POWER

    low = screen_limit(spread, min_loss)
    high = 2 * low
    while excess_chance(high) < 0:
        high *= 2
    return as_share(float(brentq(excess_chance, low, high, xtol=1e-12 * low)))
