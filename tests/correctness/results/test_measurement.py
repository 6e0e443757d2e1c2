"""Figures that follow from the stored ones."""

from dataclasses import replace

import pytest

from tests.correctness.support.record_samples import MEASUREMENT


@pytest.mark.parametrize(
    ("samples", "spread"),
    [
        ((), None),
        ((100,), None),
        ((100, 100), 0.0),
        ((98, 102), 0.02),
        ((102, 98), 0.02),
        ((98, 100, 102), 0.02),
        # Of five samples one that is slow moves nothing.
        ((98, 99, 100, 101, 102), 0.02),
        ((98, 99, 100, 101, 900), 0.02),
        ((*range(90, 111), 5000), 0.105 / 1.005),
    ],
)
def test_the_spread_is_where_the_middle_half_of_the_samples_lies(
    samples: tuple[int, ...], spread: float | None
) -> None:
    measurement = replace(MEASUREMENT, sample_ns=samples)
    assert measurement.sample_spread == pytest.approx(spread)
