"""Percentiles of the times between tokens, where there are enough of them.

A percentile is as sure as the tokens beyond it are many. With `MIN_BEYOND` of them the
99th of 500 independent tokens lies between the true 97.7th and 99.7th, with 95 %
confidence (Clopper and Pearson). With one token beyond it, that one would decide.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import quantiles

MIN_BEYOND = 5
"""Tokens that have to lie beyond a percentile, for it to be shown."""


def percentile_ms(
    samples_ns: Iterable[Sequence[int]] | None, percent: int
) -> float | None:
    """The percentile of all tokens of all samples; None where they are too few.

    That is at 10 tokens for the 50th, 50 for the 90th and 500 for the 99th. Below the
    50th the faster tokens count. Between two tokens it is interpolated.
    """
    times_ns = list(chain.from_iterable(samples_ns or ()))
    if len(times_ns) * min(percent, 100 - percent) < MIN_BEYOND * 100:
        return None
    return quantiles(times_ns, n=100, method="inclusive")[percent - 1] / 1e6
