"""The table of what marks cost, from figures made up."""

from statistics import median

import torch

from scripts.studies import mark_cost
from scripts.studies.mark_cost import ROWS, Marked, median_interval


def test_the_interval_has_the_median_of_nineteen_draws_in_twenty() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 100, generator=generator).sort().values.tolist()
    inside = sum(low <= 0.5 <= high for low, high in map(median_interval, draws))
    assert 0.93 < inside / len(draws) < 0.98
    low, high = median_interval(range(100))
    assert (low, high) == (40, 59)
    assert low + high == 2 * median(range(100))


def test_a_line_has_the_ratio_of_each_round() -> None:
    # 16 new tokens, twice: 32 ms without marks are 1 ms a token; 1 % more with them.
    row = ROWS[1]
    assert row.max_new_tokens == 16
    rounds = [(32_320_000, 32_000_000)] * 30
    cells = Marked(row, rounds).cells()
    assert cells == (row.id, "1.00", "30", "+1.00%", "+1.00% to +1.00%")


def test_the_document_has_the_table() -> None:
    text = mark_cost.PLACE.read()
    for row in ROWS:
        assert f"| {row.id}" in text
