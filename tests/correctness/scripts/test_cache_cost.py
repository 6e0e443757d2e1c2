"""Rows timed in turn, and the table of what a cache costs."""

from dataclasses import replace
from itertools import chain

import pytest

from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import text_between
from scripts.studies.cache_cost import GROUPS, PLACE, Timed, table, timed

ROW = RowSpec(
    model="stories15M", dtype="float32", device="cpu", max_new_tokens=3, num_samples=1
)


def test_rows_take_turns_and_each_round_is_kept() -> None:
    rows = [ROW, replace(ROW, cache_size=64)]
    results = timed(rows, 3, checkpoints=None)
    assert [result.row for result in results] == rows
    assert [len(result.decode_ns) for result in results] == [3, 3]
    assert all(ns > 0 for result in results for ns in result.decode_ns)


def test_the_table_has_the_median_of_the_ratios_by_round() -> None:
    first = Timed(ROW, (10**9, 2 * 10**9, 10**9))
    # As fast, but for a round in which the machine was slow for both.
    second = Timed(replace(ROW, cache_size=64), (10**9, 2 * 10**9, 2 * 10**9))
    lines = table([[first, second]]).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[1:] == ["1.0", "1.000", "0.500 to 1.000"]
    assert first.tok_s == pytest.approx(2.0)


def test_the_rows_are_what_the_document_claims() -> None:
    small, *_ = GROUPS[0]
    assert [row.kv_cache for row in GROUPS[0]] == [None, None, "int8"]
    assert [row.allocated_positions for row in GROUPS[0][1:]] == [2048, 2048]
    assert small.max_new_tokens == 200
    for group in GROUPS[1:]:
        assert [row.allocated_positions for row in group] == [8192, 131072]
        assert {row.fill for row in group} == {200}
    assert all(f"| {row.id} " in text_between(*PLACE) for row in chain(*GROUPS))
