"""Made-up histories, and how it is counted what a check finds in them."""

import math
import statistics

import pytest

from scripts.doc_tables.document import Place
from scripts.studies import history_study as study
from scripts.studies.history_study import USUAL, nights


@pytest.mark.parametrize("deviation", study.DEVIATIONS)
def test_a_history_has_the_noise_that_it_is_named_by(deviation: float) -> None:
    logs = [
        math.log(value / 100) for seed in range(40) for value in nights(deviation, seed)
    ]
    first, _, third = statistics.quantiles(logs, n=4)
    # The quartiles, which outliers hardly move; tails make them narrower.
    assert 0.85 < (third - first) / 1.349 / deviation < 1.05
    hit = sum(value < -0.05 - 5 * deviation for value in logs) / len(logs)
    assert 0 < hit < study.OUTLIERS
    assert nights(deviation, 7) == nights(deviation, 7)


def test_a_change_moves_the_nights_from_it_on() -> None:
    before, after = nights(0.01, 3), nights(0.01, 3, [(50, -0.1)])
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    assert ratios == pytest.approx([1.0] * 50 + [0.9] * 150)


def test_nights_are_counted_from_the_one_that_changed() -> None:
    quiet = nights(0.0001, 1, drift_share=0.0)
    lost = [value * (0.9 if night >= 60 else 1.0) for night, value in enumerate(quiet)]
    assert study.nights_to_find(lost, 60) == USUAL.min_runs
    assert study.nights_to_find(lost, 60 - study.NEAR - 1) is None
    assert study.nights_to_find(quiet, 60) is None
    assert study.nights_to_find(lost, 60, USUAL._replace(min_runs=5)) == 5


def test_an_alarm_is_counted_once_until_it_passes() -> None:
    quiet = nights(0.0001, 1, drift_share=0.0)
    assert study.alarms(quiet) == []
    levels = [0.9 if 60 <= night < 100 or night >= 150 else 1.0 for night in range(200)]
    moved = [value * level for value, level in zip(quiet, levels, strict=True)]
    assert study.alarms(moved) == [60 + USUAL.min_runs, 150 + USUAL.min_runs]


def documented(name: str, *first: str) -> list[str]:
    """The other cells of a table's line that begins with these."""
    for line in Place(study.DOCUMENT, f"history {name}").read().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[: len(first)] == [*first]:
            return cells[len(first) :]
    raise AssertionError(f"{name}: no line {first}")


def test_the_document_has_what_is_computed() -> None:
    # A line of each table: all of them take many minutes.
    command = "python -m scripts.studies.history_study --write"
    series = study.TABLES["losses"][1]
    cells = study.loss_cells(0.005, 0.25, series)
    assert documented("losses", "0.5 %", "25 %")[: len(cells)] == cells, command
    cells = study.pair_cells(0.05, 5, series)
    assert documented("pairs", "-5 %, then +5 %", "5") == cells, command
    for name in ("alarms", "settings"):
        assert Place(study.DOCUMENT, f"history {name}").read()
