"""The study's table, from runs made up; the study itself takes an hour."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.results.run import Report, Status
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows import selection
from llama_perf.strict_json import to_json
from scripts.doc_tables.document import text_between
from scripts.studies import gate_study
from scripts.studies.gate_study import PLACE, ROWS, SET_PLACE, SLOWDOWNS, cells, table
from tests.correctness.support.record_samples import (
    CPU_ROW,
    measured,
    report_of,
    unmeasured,
)

SAME, SLOWER, LARGER = Verdict.SAME, Verdict.SLOWER, Verdict.LARGER


def report(*verdicts: Verdict, slowed: float = 0.0) -> Report:
    """A run with a row for each verdict; `slowed` were all but the last."""
    results, comparisons = [], []
    for number, verdict in enumerate(verdicts, start=1):
        row = replace(CPU_ROW, max_new_tokens=number)
        share = 0.0 if number == len(verdicts) else slowed
        results.append(measured(row, injected_slowdown=share))
        comparisons.append(
            Comparison(
                id=row.id,
                verdict=verdict,
                reason="",
                failed=verdict in (SLOWER, LARGER),
                suspicious=verdict is SLOWER,
                minimum_detectable=0.04,
            )
        )
    return report_of(*results, comparisons=tuple(comparisons), selected=len(results))


def test_a_line_counts_rows_and_runs() -> None:
    runs = (report(SAME, SAME), report(SLOWER, SAME), report(SAME, LARGER))
    assert cells(0, runs) == ["none", "3", "6", "1", "1 (17%)", "2", "4.0%"]
    # Of a slowed run only the slowed rows.
    slowed = report(SLOWER, SAME, SLOWER, slowed=0.05)
    assert cells(5, [slowed]) == ["5 %", "1", "2", "1", "1 (50%)", "1", "4.0%"]
    run = report(Verdict.NOT_RUN, SAME)
    run = replace(run, results=(unmeasured(Status.NOT_RUN, "why"), run.results[1]))
    assert cells(0, [run])[:3] == ["none", "1", "1"]
    studied = {percent: [report(SAME)] for percent in SLOWDOWNS}
    assert len(table(studied).splitlines()) == 2 + len(SLOWDOWNS)


def test_a_study_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_file = tmp_path / "rows.toml"
    rows_file.write_text(
        '[defaults]\nmodel = "tiny"\ndevice = "cpu"\n'
        '[[row]]\n[[row]]\nquantization = "int8wo"\n'
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
        run = report(SAME, SAME)
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


def test_its_rows_are_long_enough_for_one_step_in_a_hundred() -> None:
    chosen = selection.load_file(ROWS)
    assert min(row.max_new_tokens for row in chosen) > 100
    assert {row.device for row in chosen} == {"cpu"}
    for place in (PLACE, SET_PLACE):
        assert "a baseline of 5 processes:" in text_between(*place)
