"""The gate's error rates in small, and that the document has those of the study."""

import math

import numpy as np
import pytest

from llama_perf.gate.thresholds import Spread, detection_chance, minimum_detectable
from scripts.doc_tables.document import rows_between
from scripts.studies.gate_simulation import (
    DEVIATIONS,
    MAX_FALSE_ALARMS,
    PLACE,
    ROWS,
    RUNS,
    SIZES,
    SLOWDOWNS,
    cases,
    simulate,
)


@pytest.mark.parametrize("processes", SIZES.values(), ids=SIZES)
def test_unchanged_rows_hardly_ever_fail(processes: tuple[int, ...]) -> None:
    mixed = DEVIATIONS * (ROWS // len(DEVIATIONS))
    alarms = [
        simulate(deviations, processes, runs=600, seed=1).slower().any(axis=1)
        for deviations in ((0.01,) * ROWS, mixed)
    ]
    # At the rate that is allowed, four or more of 1200 come once in thirty times.
    assert np.concatenate(alarms).sum() <= 3
    assert MAX_FALSE_ALARMS * 1200 < 3


def test_a_screen_alone_would_alarm_in_every_tenth_run() -> None:
    runs = simulate((0.01,) * ROWS, SIZES["10"], runs=600, seed=1)
    suspicious = runs.stored - runs.screened > runs.screen_limits
    assert suspicious.any(axis=1).mean() > 0.05


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_what_is_said_to_be_found_is_found(deviation: float) -> None:
    known = Spread(deviation=deviation, degrees=math.inf)
    runs = simulate((deviation,) * ROWS, SIZES["10"], runs=300, seed=2)
    smallest = minimum_detectable(known, 10)
    # The simulated runs estimate the deviation, which widens their limits a little.
    assert 0.80 < runs.detected(smallest) < 0.95
    chance = detection_chance(-math.log1p(-smallest), known, 10)
    assert runs.detected(smallest) <= chance + 0.03
    shares = [runs.detected(slowdown) for slowdown in SLOWDOWNS]
    assert shares == sorted(shares)


def test_the_document_has_the_table_of_the_study() -> None:
    cells = rows_between(*PLACE)
    wanted = [(size, name) for size in SIZES for name, _, _ in cases()]
    assert [(row[0], row[1]) for row in cells] == wanted
    for row in cells:
        assert float(row[2].removesuffix("%")) / 100 <= MAX_FALSE_ALARMS
        assert len(row) == 3 + len(SLOWDOWNS) + 1
    # One line anew, as it was computed for the document: draws are seeded.
    _, deviations, tails = cases()[0]
    runs = simulate(deviations, SIZES["10"], runs=RUNS // 10, tails=tails)
    assert abs(runs.detected(0.02) - float(cells[0][4].removesuffix("%")) / 100) < 0.01
