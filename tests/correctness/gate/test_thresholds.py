from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate import thresholds
from llama_perf.gate.noise import Spread
from llama_perf.gate.thresholds import THRESHOLDS, as_share, minimum_detectable
from llama_perf.results.measurement import median_rate, median_seconds

RATES = st.floats(1e-3, 1e6)
SPREAD = st.builds(Spread, deviation=st.floats(1e-5, 0.2), degrees=st.floats(2, 200))
PROCESSES = st.integers(3, 40)
# Each limit with a number of processes, and the deviations that it allows at 1 %.
LIMITS = (
    (thresholds.screen_limit, 10, 2.5 * math.sqrt(1.1)),
    (thresholds.confirm_limit, 10, 4.0 * math.sqrt(0.3)),
    (thresholds.faster_limit, 10, 4.0 * math.sqrt(1.1)),
    (thresholds.confirm_pairs_limit, 5, 3.3 * math.sqrt(0.4)),
)


def test_a_rate_counts_in_seconds_and_takes_the_median() -> None:
    assert median_rate(200, [1_000_000_000, 2_000_000_000, 10**15]) == 100.0
    assert median_seconds([1_000_000, 3_000_000]) == pytest.approx(0.002)


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


def test_the_limits_are_multiples_of_a_known_deviation_and_never_below_a_percent() -> (
    None
):
    known, still = (Spread(deviation=one, degrees=math.inf) for one in (0.01, 1e-6))
    for limit, processes, deviations in LIMITS:
        assert limit(known, processes) == pytest.approx(0.01 * deviations)
        assert as_share(limit(still, processes)) == pytest.approx(0.01)
    assert minimum_detectable(still, 10) == pytest.approx(0.01, rel=1e-3)


@given(SPREAD, PROCESSES)
def test_limits_widen_with_the_deviation_and_with_fewer_processes(
    spread: Spread, processes: int
) -> None:
    wider = replace(spread, deviation=spread.deviation * 2)
    better_known = replace(spread, degrees=spread.degrees * 2)
    for limit, _, _ in LIMITS:
        assert limit(wider, processes) >= limit(spread, processes)
        assert limit(spread, processes) >= limit(spread, processes + 1)
        assert limit(spread, processes) >= limit(better_known, processes)


@given(SPREAD, PROCESSES)
def test_the_minimum_detectable_loss_is_detected_with_its_power(
    spread: Spread, processes: int
) -> None:
    share = minimum_detectable(spread, processes)
    assert as_share(thresholds.screen_limit(spread, processes)) < share <= 1
    if share < 1 - 1e-9:
        loss = -math.log1p(-share)
        chance = thresholds.detection_chance(loss, spread, processes)
        assert chance == pytest.approx(THRESHOLDS.power, abs=1e-3)


def test_the_root_agrees_with_the_bisection_before_it() -> None:
    few, many = (0.01, 4.0, 5, 0.11963660498538028), (0.004, 36.0, 10, 0.01632207870)
    for deviation, degrees, processes, before in (few, many):
        spread = Spread(deviation=deviation, degrees=degrees)
        share = minimum_detectable(spread, processes)
        # That bisection stopped at a millionth, at the upper end.
        assert share <= before
        assert share == pytest.approx(before, rel=1e-6)


def test_a_shared_stored_mean_makes_no_false_alarm_likelier_than_pairs_do() -> None:
    # One standard normal for the stored mean, the other steps independent given it.
    normal = NormalDist()
    by_pairs = normal.cdf(-THRESHOLDS.screen) * normal.cdf(-THRESHOLDS.confirm_pairs)
    fresh = 1 / THRESHOLDS.confirm_processes
    for processes in (5, 10, 20):
        stored = 1 / processes
        both = 0.0
        steps = 4000
        for step in range(steps):
            lucky = normal.inv_cdf((step + 0.5) / steps) * math.sqrt(stored)
            screen = THRESHOLDS.screen * math.sqrt(1 + stored) - lucky
            confirm = THRESHOLDS.confirm * math.sqrt(fresh + stored) - lucky
            both += normal.cdf(-screen) * normal.cdf(-confirm / math.sqrt(fresh))
        assert both / steps < by_pairs, processes
