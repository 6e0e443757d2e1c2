"""How much a row's speed differs between processes, learned from all rows together.

A row has few processes, so its own variance is uncertain; the rows of a baseline
together say how far such variances are to be trusted. Knows no record and no limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, variance

# Variances of log speeds: nothing that is timed repeats to a millionth.
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A between-process standard deviation of log speeds, and its degrees of freedom.

    `degrees` says how well the deviation is known: infinite where it is given.
    """

    deviation: float
    degrees: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """What the rows together say of a variance: as much as `degrees` more processes."""

    variance: float
    degrees: float


def between_processes(log_rates: Sequence[float]) -> Spread:
    """The sample deviation of one value for each process, of which there are two."""
    assert len(log_rates) > 1, "one process has no deviation"
    found = max(variance(log_rates), _LEAST_VARIANCE)
    return Spread(deviation=math.sqrt(found), degrees=len(log_rates) - 1)


def shrunk(spreads: Sequence[Spread]) -> list[Spread]:
    """Each row's spread drawn toward the pooled one.

    The squeezed variance of Smyth (2004, "Linear models and empirical Bayes methods",
    SAGMB 3:1, section 6; the R package limma):

        s'^2 = (d0 s0^2 + d s^2) / (d0 + d)

    with s and d = processes - 1 the row's own. The pooled s0 and its weight d0 come
    from how the rows' log variances scatter: as little as chance explains, and one
    variance is common to all (d0 infinite); widely, and each row keeps its own (d0
    near 0). The result has d0 + d degrees of freedom, no more than all rows have
    together.
    """
    if len(spreads) < 2:
        return list(spreads)
    prior = _prior(spreads)
    most = sum(spread.degrees for spread in spreads)
    if math.isinf(prior.degrees):
        return [Spread(deviation=math.sqrt(prior.variance), degrees=most)] * len(
            spreads
        )
    found = []
    for spread in spreads:
        degrees = prior.degrees + spread.degrees
        squares = prior.degrees * prior.variance + spread.degrees * spread.deviation**2
        found.append(
            Spread(deviation=math.sqrt(squares / degrees), degrees=min(degrees, most))
        )
    return found


def _prior(spreads: Sequence[Spread]) -> Prior:
    """Smyth's moments of the log variances, freed from their bias and their noise."""
    logs = [2 * math.log(each.deviation) + _log_bias(each.degrees) for each in spreads]
    center = fmean(logs)
    scatter = math.fsum((each - center) ** 2 for each in logs) / (len(logs) - 1)
    excess = scatter - fmean(trigamma(each.degrees / 2) for each in spreads)
    if excess <= 0:
        return Prior(variance=math.exp(center), degrees=math.inf)
    half = inverse_trigamma(excess)
    return Prior(
        variance=math.exp(center + digamma(half) - math.log(half)), degrees=2 * half
    )


@cache
def _log_bias(degrees: float) -> float:
    """What the log of a sample variance falls short of its true value, on average."""
    return math.log(degrees / 2) - digamma(degrees / 2)


def t_multiplier(normal: float, degrees: float) -> float:
    """A multiple of a known deviation as the multiple of one that was estimated.

    The quantile of Student's t at the tail of the normal quantile `normal`, 0 or more,
    by the approximation of Wallace (1959, "Bounds on normal approximations to
    Student's and the chi-square distributions"), turned round: within 5 % from 4
    degrees on, and too large where it is off.
    """
    if math.isinf(degrees):
        return normal
    scaled = normal * (8 * degrees + 3) / (8 * degrees + 1)
    return math.sqrt(degrees * math.expm1(scaled**2 / degrees))


def digamma(x: float) -> float:
    """The derivative of log gamma for x > 0: recurrence, then its asymptotic series."""
    found = 0.0
    while x < 8:
        found -= 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square / 252))
    return found + math.log(x) - 0.5 / x - series


@cache
def trigamma(x: float) -> float:
    """The derivative of `digamma`."""
    found = 0.0
    while x < 8:
        found += 1 / (x * x)
        x += 1
    square = 1 / (x * x)
    return (
        found
        + 1 / x
        + square / 2
        + square / x * (1 / 6 - square * (1 / 30 - square / 42))
    )


def inverse_trigamma(value: float) -> float:
    """The x > 0 whose trigamma is `value` > 0, by bisection of its logarithm.

    1/x < trigamma(x) < 1/x + 1/x^2 holds it between the two bounds.
    """
    low, high = 1 / value, 1 / value + 1 / math.sqrt(value)
    while high - low > 1e-9 * low:
        middle = (low + high) / 2
        if trigamma.__wrapped__(middle) > value:
            low = middle
        else:
            high = middle
    return (low + high) / 2
