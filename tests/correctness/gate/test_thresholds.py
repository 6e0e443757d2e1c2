from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.gate.noise import Spread
from llama_perf.gate.thresholds import (
    THRESHOLDS,
    as_share,
    confirm_limit,
    confirm_pairs_limit,
    detection_chance,
    faster_limit,
    log_loss,
    minimum_detectable,
    relative_change,
    screen_limit,
)
from llama_perf.results.measurement import median_rate, median_seconds

DURATIONS = st.lists(st.integers(1, 10**13), min_size=1, max_size=20)


def test_a_rate_counts_in_seconds() -> None:
    assert median_rate(200, [1_000_000_000, 2_000_000_000, 4_000_000_000]) == 100.0
    assert median_seconds([1_000_000, 3_000_000]) == pytest.approx(0.002)


@given(DURATIONS, st.integers(1, 10**6))
def test_a_rate_is_between_that_of_the_slowest_and_the_fastest(
    durations: list[int], count: int
) -> None:
    rate = median_rate(count, durations)
    slowest, fastest = count * 1e9 / max(durations), count * 1e9 / min(durations)
    assert slowest * (1 - 1e-12) <= rate <= fastest * (1 + 1e-12)


@given(DURATIONS)
def test_one_slow_sample_of_many_does_not_move_the_median_past_its_neighbours(
    durations: list[int],
) -> None:
    with_slow_one = [*durations, 10**15]
    assert median_seconds(with_slow_one) <= max(durations) / 1e9 or len(durations) == 1


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_change_leads_from_the_baseline_to_the_current_value(
    current: float, baseline: float
) -> None:
    change = relative_change(current, baseline)
    # A change near -1 cannot hold a current value that is tiny compared with 1.
    assert baseline * (1 + change) == pytest.approx(
        current, rel=1e-9, abs=1e-12 * baseline
    )
    assert (change > 0) == (current > baseline)


SPREAD = st.builds(Spread, deviation=st.floats(1e-5, 0.2), degrees=st.floats(2, 200))
PROCESSES = st.integers(3, 40)
KNOWN = Spread(deviation=0.01, degrees=math.inf)


def test_the_limits_of_a_known_deviation_are_the_stated_multiples() -> None:
    assert screen_limit(KNOWN, 10) == pytest.approx(0.025 * math.sqrt(1.1))
    assert confirm_limit(KNOWN, 10) == pytest.approx(0.04 * math.sqrt(0.3))
    assert confirm_pairs_limit(KNOWN, 5) == pytest.approx(0.033 * math.sqrt(0.4))
    assert faster_limit(KNOWN, 10) == pytest.approx(0.04 * math.sqrt(1.1))


def test_no_loss_of_a_percent_counts_however_small_the_deviation() -> None:
    still = Spread(deviation=1e-6, degrees=math.inf)
    limits = [
        screen_limit(still, 10),
        confirm_limit(still, 10),
        confirm_pairs_limit(still, 5),
        faster_limit(still, 10),
    ]
    assert [as_share(limit) for limit in limits] == pytest.approx([0.01] * 4)
    assert minimum_detectable(still, 10) == pytest.approx(0.01, rel=1e-3)


@given(SPREAD, PROCESSES)
def test_limits_widen_with_the_deviation_and_with_fewer_processes(
    spread: Spread, processes: int
) -> None:
    wider = replace(spread, deviation=spread.deviation * 2)
    for limit in (screen_limit, confirm_limit, faster_limit):
        assert limit(wider, processes) >= limit(spread, processes)
        assert limit(spread, processes) >= limit(spread, processes + 1)
        better_known = replace(spread, degrees=spread.degrees * 2)
        assert limit(spread, processes) >= limit(better_known, processes)


@given(SPREAD, PROCESSES)
def test_the_minimum_detectable_loss_is_detected_with_its_power(
    spread: Spread, processes: int
) -> None:
    share = minimum_detectable(spread, processes)
    loss = -math.log1p(-share) if share < 1 - 1e-9 else None
    assert as_share(screen_limit(spread, processes)) < share <= 1
    if loss is not None:
        chance = detection_chance(loss, spread, processes)
        assert chance == pytest.approx(THRESHOLDS.power, abs=1e-3)


def test_the_root_agrees_with_the_bisection_before_it() -> None:
    few, many = (0.01, 4.0, 5, 0.11963660498538028), (0.004, 36.0, 10, 0.01632207870)
    for deviation, degrees, processes, before in (few, many):
        share = minimum_detectable(
            Spread(deviation=deviation, degrees=degrees), processes
        )
        # That bisection stopped at a millionth, at the upper end.
        assert share <= before
        assert share == pytest.approx(before, rel=1e-6)


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_a_log_loss_is_the_share_that_was_lost(current: float, then: float) -> None:
    loss = log_loss(current, then)
    assert as_share(loss) == pytest.approx(
        -relative_change(current, then), rel=1e-6, abs=1e-9
    )
    assert loss == -log_loss(then, current)


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
