"""How much a row's speed differs between processes, estimated from all rows together.

A row has few processes, so its own variance is uncertain. All rows of a baseline
together show how much such variances can be trusted. Knows no record and no limit.

scipy is imported where it is used: listing rows does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, variance

# Variances of log speeds: no timing repeats to a millionth.
_MIN_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A between-process standard deviation of log speeds, and its degrees of freedom.

    `degrees` are infinite for a deviation that is known exactly.
    """

    deviation: float
    degrees: float


def between_processes(log_rates: Sequence[float]) -> Spread:
    """The sample deviation of one value for each process, at least two."""
    assert len(log_rates) > 1, "one process has no deviation"
    sample_variance = max(variance(log_rates), _MIN_VARIANCE)
    return Spread(deviation=math.sqrt(sample_variance), degrees=len(log_rates) - 1)


def shrunk(spreads: Sequence[Spread]) -> list[Spread]:
    """Each row's spread drawn toward the common one.

    The squeezed variance of Smyth (2004, "Linear models and empirical Bayes methods",
    SAGMB 3:1, section 6; the R package limma):

        s'^2 = (d0 s0^2 + d s^2) / (d0 + d)

    s and d = processes - 1 are the row's own. The common s0 and its weight d0 follow
    from the scatter of the rows' log variances. If chance explains all of it, the rows
    share one variance (d0 infinite); the wider it is, the more each row keeps its own
    (d0 near 0). The result has d0 + d degrees of freedom, at most as many as all rows
    together.
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
        squeezed.append(Spread(deviation=math.sqrt(squares), degrees=degrees))
    return squeezed


def _prior(spreads: Sequence[Spread]) -> tuple[float, float]:
    """The rows' common variance, and as how many more processes it weighs.

    From Smyth's moments of the log variances, without their bias and their noise.
    """
    from scipy.special import digamma

    logs = [
        2 * math.log(spread.deviation) + _log_bias(spread.degrees) for spread in spreads
    ]
    excess = variance(logs) - fmean(trigamma(spread.degrees / 2) for spread in spreads)
    if excess <= 0:
        return math.exp(fmean(logs)), math.inf
    half = inverse_trigamma(excess)
    bias = float(digamma(half)) - math.log(half)
    return math.exp(fmean(logs) + bias), 2 * half


@cache
def _log_bias(degrees: float) -> float:
    """How far the log of a sample variance is below the true one, on average."""
    from scipy.special import digamma

    return math.log(degrees / 2) - float(digamma(degrees / 2))


@cache
def trigamma(x: float) -> float:
    """The second derivative of log gamma: the Hurwitz zeta function at 2."""
    from scipy.special import zeta

    return float(zeta(2.0, x))


def inverse_trigamma(value: float) -> float:
    """The x > 0 whose trigamma is `value` > 0.

    1/x < trigamma(x) < 1/x + 1/x^2 gives the two bounds of the search.
    """
    from scipy.optimize import brentq

    low, high = 1 / value, 1 / value + 1 / math.sqrt(value)
    return float(
        brentq(lambda x: trigamma.__wrapped__(x) - value, low, high, xtol=1e-12 * low)
    )


def t_multiplier(normal: float, degrees: float) -> float:
    """A multiple of a known deviation as the multiple of an estimated one.

    The quantile of Student's t at the tail of the normal quantile `normal`, 0 or more,
    by the approximation of Wallace (1959, "Bounds on normal approximations to
    Student's and the chi-square distributions"), inverted. From 4 degrees on it is
    within 5 % of the exact quantile, and never too small: the limits of the gate and
    their simulated error rates were chosen with it.
    """
    if math.isinf(degrees):
        return normal
    scaled = normal * (8 * degrees + 3) / (8 * degrees + 1)
    return math.sqrt(degrees * math.expm1(scaled**2 / degrees))
