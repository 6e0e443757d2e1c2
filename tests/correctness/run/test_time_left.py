"""Estimates of the time left: from tasks that ended, and from a baseline."""

from dataclasses import replace

import pytest

from llama_perf.run.time_left import Ended, Task, expected_s, stored_s, total_s
from tests.correctness.support.record_samples import MEASUREMENT

EAGER = Task(id="a", name="a", kind="eager")
COMPILED = Task(id="b", name="b", kind="compiled")
OTHER = replace(COMPILED, id="c", stored_s=40.0)
TAKEN_OVER = replace(COMPILED, id="d", stored_s=0.0)


def test_a_stored_row_took_its_build_its_warm_up_and_its_samples() -> None:
    assert stored_s(MEASUREMENT) == pytest.approx(4.0)
    assert stored_s(replace(MEASUREMENT, build_s=2.0, warm_up_s=30.0)) == 36.0


@pytest.mark.parametrize(
    ("task", "ended", "expected"),
    [
        (EAGER, [], None),
        # A row of another kind says nothing of it.
        (EAGER, [Ended(COMPILED, 60.0)], None),
        (COMPILED, [Ended(OTHER, 20.0), Ended(EAGER, 1.0), Ended(OTHER, 30.0)], 25.0),
        # The baseline's, then as much faster as the compiled rows were.
        (OTHER, [], 40.0),
        (OTHER, [Ended(EAGER, 1.0), Ended(replace(EAGER, stored_s=9.0), 1.0)], 40.0),
        (OTHER, [Ended(replace(COMPILED, stored_s=100.0), 25.0)], 10.0),
        # One without a baseline is compared with nothing, as one taken over is.
        (OTHER, [Ended(COMPILED, 7.0), Ended(TAKEN_OVER, 7.0)], 40.0),
        # Its own processes say most.
        (OTHER, [Ended(OTHER, 10.0), Ended(COMPILED, 99.0), Ended(OTHER, 12.0)], 11.0),
        (TAKEN_OVER, [Ended(OTHER, 80.0)], 0.0),
    ],
)
def test_what_a_task_is_expected_to_take(
    task: Task, ended: list[Ended], expected: float | None
) -> None:
    assert expected_s(task, ended) == expected


def test_the_time_left_is_known_once_every_task_is() -> None:
    assert total_s([], []) == 0
    assert total_s([OTHER, EAGER], []) is None
    assert total_s([OTHER, EAGER], [Ended(replace(EAGER, id="x"), 2.0)]) == 42.0
