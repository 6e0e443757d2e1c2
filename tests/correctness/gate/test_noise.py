"""The between-process deviation, its shrinkage, and the functions they need."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate import noise
from llama_perf.gate.noise import Spread, between_processes, shrunk, t_multiplier

POSITIVE = st.floats(1e-3, 1e4)
SPREAD = st.builds(
    Spread, deviation=st.floats(1e-6, 1.0), degrees=st.integers(1, 30).map(float)
)


@pytest.mark.parametrize(
    ("degrees", "log_bias", "trigamma_of_half"),
    [
        (1.0, 1.270362845610681, 4.934802200684265),
        (2.0, 0.5772156651431194, 1.6449340670881898),
        (4.0, 0.27036284570306485, 0.6449340670881899),
        (9.0, 0.11520647056594857, 0.24872510317859606),
        (30.0, 0.03370353944302895, 0.06893822784854226),
    ],
)
def test_scipys_functions_agree_with_the_series_before_them(
    degrees: float, log_bias: float, trigamma_of_half: float
) -> None:
    assert noise._log_bias(degrees) == pytest.approx(log_bias, abs=1e-9)
    assert noise.trigamma(degrees / 2) == pytest.approx(trigamma_of_half, abs=1e-9)


def test_shrunk_spreads_agree_with_those_before_scipy() -> None:
    own = ((0.01, 4.0), (0.02, 4.0), (0.005, 2.0), (0.1, 9.0))
    spreads = shrunk([Spread(deviation=one, degrees=degrees) for one, degrees in own])
    assert [(spread.deviation, spread.degrees) for spread in spreads] == [
        pytest.approx((0.010203126690373671, 4.998394121776004), rel=1e-9),
        pytest.approx((0.01855211311898006, 4.998394121776004), rel=1e-9),
        pytest.approx((0.007537528998279594, 2.9983941217760033), rel=1e-9),
        pytest.approx((0.0949393629369655, 9.998394121776004), rel=1e-9),
    ]
    alike = [Spread(deviation=one, degrees=4.0) for one in (0.01, 0.011, 0.009)]
    for spread in shrunk(alike):
        assert spread.deviation == pytest.approx(0.011409158429670559, rel=1e-9)
        assert spread.degrees == 12.0


@given(POSITIVE)
def test_the_inverse_of_trigamma_leads_back(value: float) -> None:
    assert noise.trigamma(noise.inverse_trigamma(value)) == pytest.approx(
        value, rel=1e-9
    )


# Quantiles of Student's t from its tables, at normal quantiles of the same tail.
@pytest.mark.parametrize(
    ("normal", "degrees", "quantile"),
    [
        (1.959964, 4, 2.776445),
        (1.959964, 9, 2.262157),
        (1.959964, 30, 2.042272),
        (3.290527, 4, 8.610302),
        (3.290527, 9, 4.780913),
        (3.290527, 30, 3.645959),
        (3.090232, 10, 4.143700),
    ],
)
def test_a_multiple_of_an_estimate_is_students(
    normal: float, degrees: float, quantile: float
) -> None:
    assert quantile * 0.999 <= t_multiplier(normal, degrees) <= quantile * 1.05


@given(st.floats(0.1, 5), st.floats(2, 200))
def test_what_is_less_well_known_takes_a_larger_multiple(
    normal: float, degrees: float
) -> None:
    assert t_multiplier(normal, math.inf) == normal
    assert normal < t_multiplier(normal, degrees + 1) < t_multiplier(normal, degrees)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(-5, 5))
def test_a_deviation_does_not_depend_on_the_speed(
    logs: list[float], shift: float
) -> None:
    spread = between_processes(logs)
    shifted = between_processes([log + shift for log in logs])
    assert spread.degrees == len(logs) - 1
    assert spread.deviation > 0
    assert shifted.deviation == pytest.approx(spread.deviation, rel=1e-6, abs=1e-6)


@given(st.lists(SPREAD, min_size=1, max_size=30))
def test_shrinking_draws_towards_one_value_and_keeps_the_order(
    spreads: list[Spread],
) -> None:
    squeezed = shrunk(spreads)
    total = sum(spread.degrees for spread in spreads)
    pairs = list(zip(spreads, squeezed, strict=True))
    # One row keeps its own.
    assert len(pairs) > 1 or squeezed == spreads
    for own, result in pairs:
        assert result.deviation > 0
        assert min(own.degrees, total) <= result.degrees <= total
    for (one, narrow), (other, wide) in pairwise(pairs):
        if one.degrees == other.degrees and one.deviation < other.deviation:
            assert narrow.deviation <= wide.deviation


def drawn(deviations: list[float], processes: int) -> list[Spread]:
    source = random.Random(0)
    return [
        between_processes([source.gauss(0, deviation) for _ in range(processes)])
        for deviation in deviations
    ]


def test_rows_alike_share_a_deviation_and_rows_unlike_keep_their_own() -> None:
    own = drawn([0.01] * 40, 5)
    alike = shrunk(own)

    def error(spreads: list[Spread]) -> float:
        return fmean((spread.deviation / 0.01 - 1) ** 2 for spread in spreads)

    assert error(alike) < error(own) / 2
    assert alike[0].degrees > 2 * own[0].degrees
    wide = drawn([0.001, 0.01, 0.1, 1.0] * 10, 5)
    unlike = shrunk(wide)
    assert unlike[0].degrees < 1.5 * wide[0].degrees
    means = [fmean(one.deviation for one in unlike[start::4]) for start in range(4)]
    for less, more in pairwise(means):
        assert more > 4 * less
