"""What reports show of the ranks of a row: columns, a note, details, flat lines."""

from llama_perf.report.columns import ALL, columns
from llama_perf.report.flat import lines
from llama_perf.report.html.rows import _details, rows_of
from llama_perf.report.notes import notes
from tests.correctness.support.record_samples import (
    RANKS,
    SHARED_ROW,
    measured,
    report_of,
)

REPORT = report_of(measured(), measured(SHARED_ROW, ranks=RANKS))
ALONE = report_of(measured())


def test_a_table_has_the_sums_where_a_row_has_them() -> None:
    cells = {one.name: one.cells for one in columns(REPORT, ["one", "two"], ALL)}
    assert cells["all-reduce"] == ["-", "80"]
    assert cells["all-reduce-kb"] == ["-", "0.5"]
    assert "all-reduce" not in {one.name for one in columns(ALONE, ["one"], ALL)}


def test_a_note_says_how_they_are_made() -> None:
    assert "sums over the ranks by gloo: 1 row" in list(notes(REPORT))
    assert not any("ranks" in note for note in notes(ALONE))


def test_flat_lines_say_so_too() -> None:
    alone, shared = lines(REPORT)
    assert (alone["all_reduce"], alone["all_reduce_us"]) == (None, None)
    assert (shared["all_reduce"], shared["all_reduce_us"]) == ("gloo", 80.0)
    assert shared["all_reduce_bytes"] == 512


def test_details_have_each_rank() -> None:
    rows, _ = rows_of(REPORT)
    assert "ranks" not in _details(REPORT, rows[0])
    assert _details(REPORT, rows[1])["ranks"] == [
        "4 sums a step by gloo, 0.512 KB, 80 us by themselves",
        "rank 0, Some CPU: peak 0.90 GB, model 0.25 GB, 10.0 GB/s, a sample in 1.975 s",
        "rank 1, Some CPU: peak 1.00 GB, model 0.25 GB, 10.0 GB/s, a sample in 1.995 s",
    ]
