"""The Pareto front, and what groups look like in charts."""

from itertools import product
from random import Random

import pytest

from llama_perf.report.html.chart_values import (
    LOOKS_OF_FAMILIES,
    LOOKS_OF_VERDICTS,
    family,
    listed,
    pareto_front,
    rounded,
    with_stars,
)
from llama_perf.results.run import Verdict
from llama_perf.rows.selection import every_row

Points = list[tuple[float, float]]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(20.0, 100.0)], [0]),
        # From the fastest to the closest; the last is beaten in both.
        ([(40.0, 50.0), (20.0, 100.0), (30.0, 80.0), (25.0, 70.0)], [1, 2, 0]),
        # As fast and less close; as close and slower.
        ([(20.0, 100.0), (30.0, 100.0), (30.0, 90.0)], [1]),
        # Equal points are on it together, or neither is.
        ([(30.0, 90.0), (20.0, 100.0), (30.0, 90.0)], [1, 0, 2]),
        ([(30.0, 90.0), (40.0, 100.0), (30.0, 90.0)], [1]),
    ],
)
def test_the_front_has_the_points_that_none_beats(
    points: Points, front: list[int]
) -> None:
    found = pareto_front(points)
    assert sorted(found) == sorted(front)
    assert [points[number] for number in found] == [points[number] for number in front]


def test_the_front_is_what_the_definition_says() -> None:
    draw = Random(1)
    for _ in range(50):
        points = [
            (draw.uniform(0, 6) // 1, draw.uniform(0, 6) // 1) for _ in "12345678"
        ]
        beaten = {
            number
            for (number, one), other in product(enumerate(points), points)
            if other != one and other[0] >= one[0] and other[1] >= one[1]
        }
        assert set(pareto_front(points)) == set(range(len(points))) - beaten


def test_each_family_and_verdict_has_a_look_of_its_own() -> None:
    assert {family(row) for row in every_row()} <= LOOKS_OF_FAMILIES.keys()
    for looks in (LOOKS_OF_FAMILIES, LOOKS_OF_VERDICTS):
        assert len(set(looks.values())) == len(looks)
    looks = with_stars(LOOKS_OF_FAMILIES, ["new", "int8wo", "other"])
    assert looks.keys() - LOOKS_OF_FAMILIES.keys() == {"new", "other"}
    assert len(set(looks.values())) == len(looks)
    assert LOOKS_OF_VERDICTS.keys() == set(Verdict)
    # A failed row differs from others by its shape, not by its colour alone.
    failed = {Verdict.SLOWER, Verdict.LARGER, Verdict.UNDECIDED}
    shapes = {LOOKS_OF_VERDICTS[verdict][1] for verdict in failed}
    assert shapes.isdisjoint(
        LOOKS_OF_VERDICTS[verdict][1]
        for verdict in (Verdict.SAME, Verdict.FASTER, Verdict.SMALLER)
    )


def test_numbers_and_lists_are_short() -> None:
    assert rounded(1234567.0) == 1235000.0
    assert rounded(0.000123456, 3) == 0.000123
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b, and 2 more"
