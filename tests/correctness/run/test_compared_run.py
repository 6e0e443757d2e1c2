"""Which rows a run confirms, and for which it asks whether the base was worse too."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import torch

from llama_perf.gate.evidence import Trial
from llama_perf.results.run import Comparison, Verdict, read_report
from llama_perf.rows.spec import RowSpec
from llama_perf.run import compared_run, confirmation
from llama_perf.run.compared_run import ComparedRun
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import to_json
from tests.correctness.support.record_samples import (
    ALIKE,
    CLOSENESS,
    CPU_ROW,
    ENVIRONMENT,
    INT8_CPU,
    baseline_of,
    baseline_of_processes,
    close,
    measured,
    report_of,
)
from tests.correctness.support.terminals import quiet

STORED = baseline_of_processes(
    {CPU_ROW: ALIKE, INT8_CPU: [2 * tok_s for tok_s in ALIKE]}
)


@pytest.fixture
def this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that no process measures on."""
    machine = SimpleNamespace(device=torch.device("cpu"), environment=ENVIRONMENT)
    monkeypatch.setattr(compared_run, "Session", lambda *_, **__: machine)
    monkeypatch.setattr(compared_run, "locked", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("this_device")
def test_a_run_confirms_with_the_unquantized_row_only_where_speed_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[RowSpec, RowSpec | None]] = []

    def confirm(
        row: RowSpec, unquantized: RowSpec | None, **_options: object
    ) -> list[Trial]:
        asked.append((row, unquantized))
        # What an interrupt would leave.
        left = run.report.comparisons[-1]
        assert (left.verdict, left.failed) == (Verdict.UNDECIDED, True)
        assert left.reason.endswith("; the run ended before it was confirmed")
        return [Trial(row=measured(row, tok_s=100.0), unquantized=measured())] * 5

    request = RunRequest(set="cpu", compare=True, baselines=tmp_path)
    run = ComparedRun([], request, named=("made up", STORED), display=quiet())
    running = Mock()
    monkeypatch.setattr(confirmation, "in_confirmation", confirm)
    assert run.add(measured(), running=running).verdict is Verdict.SAME
    slower = run.add(measured(INT8_CPU, tok_s=100.0), running=running)
    assert slower.verdict is Verdict.SLOWER
    assert "tok/s over the unquantized row's 2." in slower.reason
    assert "; confirmed by 5 fresh processes: 1.000 (-50" in slower.reason
    large = measured(INT8_CPU, tok_s=200.0, peak_memory_bytes=2_000_000_000)
    comparison = run.add(large, running=running)
    assert comparison.verdict is Verdict.SAME
    assert comparison.doubtful
    assert asked == [(INT8_CPU, CPU_ROW), (INT8_CPU, None)]
    assert "; no pairs, since git has no commit 0123456789ab here" in slower.reason
    # What is said of it, and how many processes are to come.
    said = [
        call("note: it may be slower; pairs or fresh processes decide"),
        call("note: it looks larger; fresh processes decide"),
    ]
    assert running.step.call_args_list == said
    assert running.repeat.call_args_list == [call(10), call(5)]


@pytest.mark.usefixtures("this_device")
@pytest.mark.parametrize(
    ("base", "no_confirm", "asked"),
    [("main", False, ["SLOWER", "LARGER"]), ("main", True, []), (None, False, [])],
)
def test_a_run_asks_of_each_worse_row_whether_the_base_was_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str | None,
    no_confirm: bool,
    asked: list[str],
) -> None:
    blamed: list[str] = []

    def blame(_row: RowSpec, comparison: Comparison, **_: object) -> Comparison:
        blamed.append(comparison.verdict.value)
        return comparison

    monkeypatch.setattr(compared_run, "blame", blame)
    monkeypatch.setattr(compared_run, "resolve", lambda revision: revision)
    request = RunRequest(
        set="cpu", compare=True, baselines=tmp_path, base=base, no_confirm=no_confirm
    )
    # One process: its limit is fixed, and nothing is confirmed.
    stored = "made up", baseline_of(measured())
    run = ComparedRun([], request, named=stored, display=quiet())
    for result in (
        measured(tok_s=10.0),
        measured(model_size_bytes=900_000_000),
        measured(),
    ):
        run.add(result, running=Mock())
    assert blamed == asked


@pytest.mark.usefixtures("this_device")
@pytest.mark.parametrize("base", ["main", None])
def test_a_row_that_lost_closeness_is_worse_whatever_the_base_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    monkeypatch.setattr(compared_run, "resolve", lambda revision: revision)
    request = RunRequest(set="cpu", compare=True, baselines=tmp_path, base=base)
    stored = "made up", baseline_of(close())
    run = ComparedRun([], request, named=stored, display=quiet())
    worse = run.add(close(db=5.0), running=Mock())
    assert (worse.verdict, worse.failed) == (Verdict.WORSE, True)
    words = "; pairs with main measure no closeness, so it may be so already"
    assert worse.reason.endswith(words) is (base is not None)


@pytest.mark.usefixtures("this_device")
def test_what_ends_a_confirmation_leaves_a_worse_row_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirm(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    request = RunRequest(
        set="cpu", compare=True, baselines=tmp_path, on_undecided="report"
    )
    stored = baseline_of_processes({CPU_ROW: ALIKE}, closeness=CLOSENESS)
    run = ComparedRun([], request, named=("made up", stored), display=quiet())
    monkeypatch.setattr(compared_run, "confirm", confirm)
    for db, verdict in ((12.0, Verdict.UNDECIDED), (5.0, Verdict.WORSE)):
        slow = measured(tok_s=50.0, closeness=replace(CLOSENESS, db=db))
        with pytest.raises(KeyboardInterrupt):
            run.add(slow, running=Mock())
        left = run.report.comparisons[-1]
        assert (left.verdict, left.failed) == (verdict, verdict is Verdict.WORSE)


@pytest.mark.usefixtures("this_device")
def test_a_resumed_run_stores_what_its_rows_were_compared_with(tmp_path: Path) -> None:
    results = tmp_path / "run.json"
    results.write_text(to_json(report_of(measured())), encoding="utf-8")
    request = RunRequest(
        set="cpu", compare=True, baselines=tmp_path, results=results, resume=True
    )
    run = ComparedRun([CPU_ROW], request, named=("made up", STORED), display=quiet())
    run.run_row(CPU_ROW)
    (comparison,) = read_report(results).comparisons
    assert comparison.verdict is Verdict.SAME
    assert comparison.before == STORED.rows[0].before
