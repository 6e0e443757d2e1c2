from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.stats import change, median_rate, median_seconds

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
    held_up = [*durations, 10**15]
    assert median_seconds(held_up) <= max(durations) / 1e9 or len(durations) == 1


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_change_leads_from_the_baseline_to_the_current_value(
    current: float, baseline: float
) -> None:
    found = baseline * (1 + change(current, baseline))
    # 1 + (-1 + little) has lost what is small beside 1.
    assert found == pytest.approx(current, rel=1e-9, abs=1e-12 * baseline)
    assert (change(current, baseline) > 0) == (current > baseline)
