"""The study's table, from runs made up; the study itself takes an hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.results.run import Report, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows import selection
from llama_perf.strict_json import to_json
from scripts.studies import gate_study
from scripts.studies.gate_study import PLACE, ROWS, SET_PLACE, SLOWDOWNS, Runs, table
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    unmeasured,
)


def report(*verdicts: Verdict, slowed: float = 0.0) -> Report:
    """A run with a row for each verdict; `slowed` were all but the last."""
    results, comparisons = [], []
    for number, verdict in enumerate(verdicts):
        row = replace(CPU_ROW, max_new_tokens=number + 2)
        last = number == len(verdicts) - 1
        results.append(measured(row, injected_slowdown=0.0 if last else slowed))
        comparisons.append(
            Comparison(
                id=row.id,
                verdict=verdict,
                reason="",
                failed=verdict in (Verdict.SLOWER, Verdict.LARGER),
                suspicious=verdict is Verdict.SLOWER,
                minimum_detectable=0.04,
            )
        )
    return Report(
        started="2026-01-02T03:04:05+00:00",
        environment=ENVIRONMENT,
        selected=len(verdicts),
        results=tuple(results),
        comparisons=tuple(comparisons),
    )


def test_a_line_counts_rows_and_runs() -> None:
    same, slower, larger = Verdict.SAME, Verdict.SLOWER, Verdict.LARGER
    runs = (report(same, same), report(slower, same), report(same, larger))
    cells = Runs(percent=0, reports=runs).cells()
    assert cells == ["none", "3", "6", "1", "1 (17%)", "2", "4.0%"]


def test_of_a_slowed_run_the_slowed_rows_are_counted() -> None:
    same, slower = Verdict.SAME, Verdict.SLOWER
    runs = (report(slower, same, slower, slowed=0.05),)
    cells = Runs(percent=5, reports=runs).cells()
    assert cells == ["5 %", "1", "2", "1", "1 (50%)", "1", "4.0%"]


def test_rows_that_were_not_run_are_not_judged() -> None:
    run = report(Verdict.NOT_RUN, Verdict.SAME)
    run = replace(run, results=(unmeasured(Status.NOT_RUN, "why"), run.results[1]))
    assert Runs(percent=0, reports=(run,)).cells()[:3] == ["none", "1", "1"]


def test_a_study_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_file = tmp_path / "rows.toml"
    rows_file.write_text(
        """
        [defaults]
        model = "tiny"
        device = "cpu"
        [[row]]
        [[row]]
        quantization = "int8wo"
        """,
        encoding="utf-8",
    )
    ran: list[list[str]] = []

    def command(words: Sequence[str], **_allowed: object) -> None:
        ran.append(list(words))
        if words[0] == "baseline":
            path = tmp_path / "work" / "baselines" / "some" / "baseline.json"
            path.parent.mkdir(parents=True)
            path.touch()
            return
        path = Path(words[words.index("--results") + 1])
        run = report(Verdict.SAME, Verdict.SAME)
        if len(ran) == 3:
            run = replace(run, results=(), comparisons=())
        path.write_text(to_json(run), encoding="utf-8")

    monkeypatch.setattr(gate_study, "_command", command)
    words = ["--rows", str(rows_file), "--work", str(tmp_path / "work")]
    words += ["--runs", "2", "--slowed-runs", "2"]
    assert gate_study.main(words) == 0
    assert [words[0] for words in ran].count("baseline") == 1
    assert len(ran) == 1 + 2 + 2 * (len(SLOWDOWNS) - 1)
    # Every second slowed run slows the quantized rows, the others the rest.
    slowed = [word for words in ran for word in words if word.endswith("=1")]
    assert [".int8wo." in word for word in slowed] == [True, False]
    ran.clear()
    gate_study.main([*words, "--resume"])
    # The one that had not come to its end.
    assert len(ran) == 1


def test_the_table_has_a_line_for_each_share() -> None:
    same = (report(Verdict.SAME),)
    studied = [Runs(percent=percent, reports=same) for percent in SLOWDOWNS]
    assert len(table(studied).splitlines()) == 2 + len(SLOWDOWNS)


def test_its_rows_are_long_enough_for_one_step_in_a_hundred() -> None:
    chosen = selection.load_file(ROWS)
    assert min(row.max_new_tokens for row in chosen) > 100
    assert {row.device for row in chosen} == {"cpu"}


def test_the_document_has_a_place_for_it() -> None:
    for document, begin, end in (PLACE, SET_PLACE):
        text = document.read_text(encoding="utf-8")
        assert text.index(begin) < text.index(end)
