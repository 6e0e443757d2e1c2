"""The mark of a disturbed row and the note on it, with a comparison and without."""

import csv

import pytest

from llama_perf import report
from llama_perf.gate.verdict import not_compared
from llama_perf.report.table import shown
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.measurement import SystemLoad
from llama_perf.results.run import Report
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.record_samples import (
    OTHER,
    baseline_of,
    compare,
    measured,
    report_of,
)

LOAD = SystemLoad(
    seconds=1.0, cores=2, threads=2, other_cores=0.9, steal_share=0.03, load_average=2.4
)
BUSY, QUIET = measured(load=LOAD), measured(OTHER)
WORDS = "other processes took 0.9 of 2 cores, steal 3%, load average 2.4"
NOTE = f"disturbed (*): {BUSY.id}: {WORDS}"
COMPARED = report_of(
    BUSY,
    QUIET,
    comparisons=tuple(
        compare(row, baseline_of(measured(), QUIET)) for row in (BUSY, QUIET)
    ),
)


@pytest.mark.parametrize(
    ("run", "word"), [(report_of(BUSY, QUIET), "MEASURED"), (COMPARED, "SAME")]
)
def test_a_disturbed_row_is_marked_and_a_note_says_by_what(
    run: Report, word: str
) -> None:
    for text in (as_text(run), as_markdown(run).replace(" |", "")):
        busy, quiet = (
            next(line for line in text.splitlines() if f"{name} " in line)
            for name in ("eager", "compile")
        )
        assert busy.split()[-1] == f"{word}*"
        assert quiet.split()[-1] == word
        assert text.count("disturbed") == 1
    assert f"\n{NOTE}\n" in as_text(run)
    assert f"\n- {NOTE}\n" in as_markdown(run)
    busy_line, quiet_line = csv.DictReader(report.draw(run, "csv").splitlines())
    assert busy_line["disturbed"] == WORDS
    assert quiet_line["disturbed"] == ""
    assert "*" not in busy_line["verdict"]
    assert from_json(Report, to_json(run), source="report") == run


def test_the_line_that_stays_says_so_too() -> None:
    busy, quiet = COMPARED.comparisons
    assert shown(BUSY, busy)[1:] == ("SAME, disturbed", "yellow")
    assert shown(QUIET, quiet)[1:] == ("SAME", "green")
    assert shown(BUSY, not_compared(BUSY))[1:] == ("disturbed", "yellow")
    assert shown(QUIET, not_compared(QUIET))[1:] == ("", "")


def test_a_disturbed_row_that_looked_faster_says_why_it_is_the_same() -> None:
    faster = measured(tok_s=200.0, load=LOAD)
    run = report_of(faster, comparisons=(compare(faster, baseline_of(measured())),))
    assert f"\nSAME {faster.id}: within its limits: " in as_text(run)
    assert f"; looks faster, but was disturbed: {WORDS}\n" in as_text(run)
