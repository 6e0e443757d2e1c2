"""Where a series changed: what counts, what does not, and what fails a check."""

from dataclasses import replace
from importlib import util
from itertools import chain

import pytest

from llama_perf.errors import UserError
from llama_perf.gate import change_points
from llama_perf.gate.change_points import counted_ones, steps
from llama_perf.gate.history import losses, trends
from llama_perf.results.history import HistoryLine
from llama_perf.results.trends import ChangePoint
from tests.correctness.support.histories import KEY, lines, night, steady
from tests.correctness.support.record_samples import CPU_ROW


def only(values: list[float], **options: float) -> tuple[int, float]:
    (step,) = steps(values, **options)
    return step.start, round(step.change, 3)


def test_a_loss_is_found_where_it_happened() -> None:
    assert only(steady(40) + steady(20, 0.95)) == (40, -0.05)
    assert only(steady(40) + steady(20, 1.10)) == (40, 0.1)
    assert steps(steady(60)) == []


def test_a_level_of_three_figures_counts_and_a_shorter_one_does_not() -> None:
    assert only(steady(40) + steady(3, 0.9))[0] == 40
    assert steps(steady(40) + steady(2, 0.9)) == []
    assert steps(steady(40) + steady(2, 0.9) + steady(30)) == []


def test_a_change_below_the_least_does_not_count() -> None:
    values = steady(40) + steady(40, 0.985)
    assert steps(values) == []
    assert only(values, least=0.01) == (40, -0.015)


def test_outliers_hide_no_change_and_are_none() -> None:
    values = steady(40) + steady(20, 0.95)
    for number in (7, 19, 33, 52):
        values[number] *= 0.7
    assert only(values) == (40, -0.05)
    # Whichever night it is, the last one too.
    assert steps([*steady(40), 70.0]) == []


def test_a_series_without_any_noise() -> None:
    # The reserved bytes of a card are the same each night.
    assert only([4e9] * 30 + [4.4e9] * 3) == (30, 0.1)
    alike = [4e9] * 40
    for values in ([], [4e9], [4e9, 4.4e9], alike, [*alike, 5e9], [2e9, *alike]):
        assert steps(values) == []


def test_a_history_may_be_longer_than_a_window() -> None:
    values = steady(200) + steady(30, 0.97)
    assert set(change_points.candidates(values, window=30)) == {200}


def test_levels_that_lie_close_together_are_joined() -> None:
    values = [100.0] * 10 + [99.0] * 10 + [95.0] * 10
    found = counted_ones(values, {10: 1e-9, 20: 1e-9}, least=0.02)
    assert [(step.start, step.old, step.new) for step in found] == [(20, 99.5, 95.0)]


def test_without_otava_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(change_points, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^change points need otava, which is not ins"):
        steps(steady(10))
    assert util.find_spec("otava") is not None


def changes_of(history: list[HistoryLine]) -> list[ChangePoint]:
    (trend,) = trends(KEY, history)
    return list(trend.changes)


def test_a_change_point_names_both_runs_and_what_changed_between_them() -> None:
    history = lines(steady(40) + steady(10, 0.9))
    history[40:] = [replace(line, torch="2.14.0") for line in history[40:]]
    # A disturbed run is none of the two.
    history[40] = replace(history[40], disturbed="by a neighbour", tok_s=20.0)
    (change,) = changes_of(history)
    assert (change.metric, change.is_loss, change.runs) == ("tok/s", True, 9)
    assert (change.before.started, change.after.started) == (night(39), night(41))
    assert (change.before.commit, change.after.commit) == (f"{39:012x}", f"{41:012x}")
    assert change.environment == ("torch: 2.13.0 -> 2.14.0",)


def test_of_memory_more_is_a_loss() -> None:
    speeds = steady(40)
    history = lines(speeds[:30], peak_memory_bytes=10**9)
    for level, is_loss in ((1.1, True), (0.9, False)):
        later = lines(speeds, peak_memory_bytes=int(level * 10**9))[30:]
        (change,) = changes_of([*history, *later])
        assert (change.metric, change.is_loss) == ("peak memory", is_loss)
    # What differs by less than any share is no loss.
    same = [replace(line, peak_memory_bytes=10**9 + 1) for line in lines(speeds)[30:]]
    (trend,) = trends(KEY, [*history, *same], least=0.0)
    assert all(change.is_loss for change in trend.changes if change.change > 0)
    # A row whose growth was not seen has a peak of 0.
    assert changes_of(lines(speeds, peak_memory_bytes=0)) == []


@pytest.mark.parametrize(
    ("levels", "fails"),
    [
        ((1.0, 0.9), True),
        ((1.0, 1.1), False),
        ((1.0, 0.9, 1.0), False),
        ((1.0, 1.1, 1.0), True),
    ],
)
def test_the_newest_change_point_decides(levels: list[float], fails: bool) -> None:
    history = lines([*chain(*(steady(20, level) for level in levels))])
    (trend,) = trends(KEY, history)
    assert len(trend.changes) == len(levels) - 1
    assert bool(losses(trend, history)) == fails


def test_a_loss_passes_after_so_many_runs_of_the_device() -> None:
    history = lines(steady(40) + steady(10, 0.9))
    (trend,) = trends(KEY, history)
    assert losses(trend, history, last=10)
    assert losses(trend, history, last=9) == []
    # A row that no run has any more does not fail forever.
    other = [replace(line, id="other") for line in lines(steady(90))[50:]]
    assert losses(trend, [*history, *other], last=40)
    assert losses(trend, [*history, *other], last=39) == []
    assert trend.id == CPU_ROW.id
