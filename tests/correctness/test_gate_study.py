"""The study's table, from runs made up; the study itself takes an hour."""

from __future__ import annotations

from dataclasses import replace

from record_samples import CPU_ROW, ENVIRONMENT, measured, unmeasured

from llama_perf import rows
from llama_perf.gate_study import BEGIN, DOCUMENT, END, ROWS, SLOWDOWNS, Runs, table
from llama_perf.records import Comparison, Report, Status, Verdict


def report(*verdicts: Verdict) -> Report:
    return Report(
        started="2026-01-02T03:04:05+00:00",
        environment=ENVIRONMENT,
        results=(measured(),),
        comparisons=tuple(
            Comparison(
                id=f"{CPU_ROW.id}.{number}",
                verdict=verdict,
                reason="",
                failed=verdict in (Verdict.SLOWER, Verdict.LARGER),
                suspicious=verdict is Verdict.SLOWER,
                minimum_detectable=0.04,
            )
            for number, verdict in enumerate(verdicts)
        ),
    )


def test_a_line_counts_rows_and_runs() -> None:
    same, slower, larger = Verdict.SAME, Verdict.SLOWER, Verdict.LARGER
    runs = (report(same, same), report(slower, same), report(same, larger))
    cells = Runs(percent=5, reports=runs).cells()
    assert cells == ["5 %", "3", "6", "1", "1 (17%)", "2", "4.0%"]


def test_rows_that_were_not_run_are_not_judged() -> None:
    found = report(Verdict.NOT_RUN, Verdict.INVALID, Verdict.SAME)
    found = replace(found, results=(unmeasured(Status.NOT_RUN, "why"),))
    assert Runs(percent=0, reports=(found,)).cells()[:3] == ["none", "1", "1"]


def test_the_table_has_a_line_for_each_share() -> None:
    same = (report(Verdict.SAME),)
    studied = [Runs(percent=each, reports=same) for each in SLOWDOWNS]
    assert len(table(studied).splitlines()) == 2 + len(SLOWDOWNS)


def test_its_rows_are_long_enough_for_one_step_in_a_hundred() -> None:
    chosen = rows.load(set_name=None, file=ROWS, globs=())
    assert min(row.max_new_tokens for row in chosen) > 100
    assert {row.device for row in chosen} == {"cpu"}


def test_the_document_has_a_place_for_it() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)
