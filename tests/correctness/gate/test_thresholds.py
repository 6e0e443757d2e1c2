"""The deviation between processes, its shrinkage, and the limits that follow."""

import math
import random
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, polygamma, stdtrit

from llama_perf.gate import thresholds
from llama_perf.gate.thresholds import Spread, as_share, shrunk


def spread_of(
    deviation: float, degrees: float = math.inf, processes: int = 10
) -> Spread:
    return Spread(deviation=deviation, degrees=degrees, processes=processes)


OWN = st.builds(spread_of, st.floats(1e-6, 1.0), st.integers(1, 30).map(float))
SPREAD = st.builds(
    spread_of, st.floats(1e-5, 0.2), st.floats(2, 200), st.integers(3, 40)
)


def test_shrunk_spreads_agree_with_those_before_scipy() -> None:
    own = ((0.01, 4.0), (0.02, 4.0), (0.005, 2.0), (0.1, 9.0))
    spreads = shrunk([spread_of(*one) for one in own])
    assert [(spread.deviation, spread.degrees) for spread in spreads] == [
        pytest.approx((0.010203126690373671, 4.998394121776004), rel=1e-9),
        pytest.approx((0.01855211311898006, 4.998394121776004), rel=1e-9),
        pytest.approx((0.007537528998279594, 2.9983941217760033), rel=1e-9),
        pytest.approx((0.0949393629369655, 9.998394121776004), rel=1e-9),
    ]
    for spread in shrunk([spread_of(one, 4.0) for one in (0.01, 0.011, 0.009)]):
        assert spread.deviation == pytest.approx(0.011409158429670559, rel=1e-9)
        assert spread.degrees == 12.0


@given(st.floats(1e-3, 1e4))
def test_the_inverse_of_trigamma_leads_back(value: float) -> None:
    inverse = thresholds.inverse_trigamma(value)
    assert polygamma(1, inverse) == pytest.approx(value, rel=1e-9)


@given(SPREAD, st.floats(0.01, 0.2))
def test_nineteen_of_twenty_losses_come_before_pairs(
    spread: Spread, target: float
) -> None:
    limit = thresholds.pairs_limit(spread, target)
    assert limit <= thresholds.screen_limit(spread)
    # By the normal distribution; an estimated deviation sends more.
    deviation = spread.deviation * math.sqrt(1 + 1 / spread.processes)
    loss = -math.log1p(-target)
    assert NormalDist(loss, deviation).cdf(limit) <= 0.05 + 1e-9


@given(st.floats(1.9, 3.3), st.floats(4, 300))
def test_a_multiple_of_an_estimate_is_students(normal: float, degrees: float) -> None:
    quantile = -stdtrit(degrees, ndtr(-normal))
    multiple = thresholds.t_multiplier(normal, degrees)
    assert quantile * 0.999 <= multiple <= quantile * 1.05


@given(st.floats(0.1, 5), st.floats(2, 200))
def test_what_is_less_well_known_takes_a_larger_multiple(
    normal: float, degrees: float
) -> None:
    assert thresholds.t_multiplier(normal, math.inf) == normal
    better = thresholds.t_multiplier(normal, degrees + 1)
    assert normal < better < thresholds.t_multiplier(normal, degrees)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(-5, 5))
def test_a_deviation_does_not_depend_on_the_speed(
    logs: list[float], shift: float
) -> None:
    spread = thresholds.between_processes(logs)
    shifted = thresholds.between_processes([log + shift for log in logs])
    assert spread.degrees == len(logs) - 1
    assert spread.deviation > 0
    assert shifted.deviation == pytest.approx(spread.deviation, rel=1e-6, abs=1e-6)


@given(st.lists(OWN, min_size=1, max_size=30))
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
        thresholds.between_processes(
            [source.gauss(0, deviation) for _ in range(processes)]
        )
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


RATES = st.floats(1e-3, 1e6)
# Each limit with the deviations of 10 processes that it allows.
LIMITS = {
    thresholds.screen_limit: 2.5 * math.sqrt(1.1),
    thresholds.confirm_limit: 4.0 * math.sqrt(0.3),
    thresholds.faster_limit: 4.0 * math.sqrt(1.1),
}


@given(RATES, RATES)
def test_a_change_and_a_loss_lead_from_the_baseline_to_the_current_value(
    current: float, baseline: float
) -> None:
    change = thresholds.relative_change(current, baseline)
    # A change near -1 cannot hold a current value that is tiny compared with 1.
    assert baseline * (1 + change) == pytest.approx(
        current, rel=1e-9, abs=1e-12 * baseline
    )
    assert (change > 0) == (current > baseline)
    loss = thresholds.log_loss(current, baseline)
    assert as_share(loss) == pytest.approx(-change, rel=1e-6, abs=1e-9)
    assert loss == -thresholds.log_loss(baseline, current)


def test_limits_are_multiples_of_a_deviation_and_never_below_a_percent() -> None:
    for limit, deviations in LIMITS.items():
        assert limit(spread_of(0.01)) == pytest.approx(0.01 * deviations)
        assert as_share(limit(spread_of(1e-6))) == pytest.approx(0.01)
    assert thresholds.minimum_detectable(spread_of(1e-6)) == pytest.approx(
        0.01, rel=1e-3
    )


@given(SPREAD)
def test_limits_narrow_with_the_deviation_and_with_more_processes(
    spread: Spread,
) -> None:
    narrower = (
        replace(spread, deviation=spread.deviation / 2),
        replace(spread, degrees=spread.degrees * 2),
        replace(spread, processes=spread.processes + 1),
    )
    for limit in LIMITS:
        assert limit(spread) >= max(map(limit, narrower))


@given(SPREAD)
def test_the_minimum_detectable_loss_is_detected_with_its_power(spread: Spread) -> None:
    share = thresholds.minimum_detectable(spread)
    assert as_share(thresholds.screen_limit(spread)) < share <= 1
    if share < 1 - 1e-9:
        chance = thresholds.detection_chance(-math.log1p(-share), spread)
        assert chance == pytest.approx(thresholds.POWER, abs=1e-6)


def test_a_shared_stored_mean_makes_no_false_alarm_likelier_than_two_steps() -> None:
    # One standard normal for the stored mean, the other steps independent given it.
    normal = NormalDist()
    two_steps = normal.cdf(-thresholds.SCREEN) * normal.cdf(-3.3)
    fresh = 1 / thresholds.CONFIRM_PROCESSES
    for processes in (5, 10, 20):
        stored = 1 / processes
        both = 0.0
        steps = 4000
        for step in range(steps):
            lucky = normal.inv_cdf((step + 0.5) / steps) * math.sqrt(stored)
            screen = thresholds.SCREEN * math.sqrt(1 + stored) - lucky
            confirm = thresholds.CONFIRM * math.sqrt(fresh + stored) - lucky
            both += normal.cdf(-screen) * normal.cdf(-confirm / math.sqrt(fresh))
        assert both / steps < two_steps, processes
