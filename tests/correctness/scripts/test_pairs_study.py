"""Pairs of processes: simulated, and the study that counts their verdicts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llama_perf.results.run import Verdict
from llama_perf.strict_json import to_json
from scripts.studies import pairs_simulation as simulation
from scripts.studies import pairs_study
from tests.correctness.support.study_reports import report

SAME, SLOWER = Verdict.SAME, Verdict.SLOWER


@pytest.mark.parametrize("machine", simulation.MACHINES)
def test_blocks_of_unchanged_rows_never_fail(machine: str) -> None:
    counts = simulation.unchanged(simulation.MACHINES[machine], 40)
    assert (counts.slower, counts.faster) == (0, 0)
    assert counts.undecided <= 0.1
    assert 2 <= counts.blocks < 3.5


def test_blocks_of_pairs_find_losses_that_the_machine_lets_them_find() -> None:
    steady, shared, _ = simulation.MACHINES.values()
    for noise, loss, least in ((steady, 0.05, 0.99), (shared, 0.05, 0.85)):
        share, blocks = simulation.found(noise, loss, 100)
        assert share >= least
        assert blocks < 7
    share, blocks = simulation.found(shared, 0.25, 100)
    assert (share, round(blocks)) == (1.0, 2)


def test_the_order_of_building_cancels_and_the_minute_does_not_matter() -> None:
    source = np.random.default_rng(0)
    noise = simulation.Noise(0.3, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0)
    values = simulation.blocks(noise, 200, source)
    assert abs(values.mean()) < 0.005
    assert values.mean(-1).std() < 0.03


def test_the_document_has_the_table_of_simulated_pairs() -> None:
    cells = simulation.TABLE.documented()
    assert list(cells) == list(simulation.TABLE.keys)
    for row in cells.values():
        alarms = [float(cell.removesuffix("%")) / 100 for cell in row[:2]]
        assert max(alarms) <= simulation.MAX_FALSE_ALARMS
        assert len(row) == 4 + len(simulation.LOSSES)


def test_the_study_of_pairs_counts_slowed_rows_apart() -> None:
    case = pairs_study.Case("quantized", 5)
    runs = [report(SLOWER, SAME, slowed=0.05), report(SAME, SLOWER, slowed=0.05)]
    line = pairs_study.cells(case, runs)
    assert line[:6] == ["quantized, 5 %", "nothing", "2", "2", "1 (50%)", "2"]
    assert line[6:9] == ["1", "0", "0"]
    assert pairs_study.cells(pairs_study.Case(busy=True), [report(SAME)])[:5] == [
        *("none", "a busy loop", "1", "0", "-")
    ]
    names = [one.name for one in pairs_study.cases([5, 10])]
    assert names[:3] == ["unchanged", "unchanged-busy", "quantized-5"]
    assert len(set(names)) == len(names) == 6


def test_a_study_that_is_resumed_runs_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, bool]] = []

    def compare(words: Sequence[str], *, busy: bool) -> None:
        path = Path(words[words.index("--results") + 1])
        ran.append((path.stem, busy))
        slowed = 0.05 if "--inject-slowdown" in words else 0.0
        path.write_text(
            to_json(report(SLOWER if slowed else SAME, SAME, slowed=slowed))
        )

    monkeypatch.setattr(pairs_study, "_compare", compare)
    options = ["--work", str(tmp_path), "--runs", "2", "--percent", "5", "--resume"]
    assert pairs_study.main(options) == 0
    assert [name for name, _ in ran] == [
        *("unchanged-run-0", "unchanged-busy-run-0", "quantized-5-run-0"),
        *("unquantized-5-run-0", "unchanged-run-1", "unchanged-busy-run-1"),
    ]
    assert [busy for _, busy in ran] == [False, True, False, False, False, True]
    ran.clear()
    (tmp_path / "unchanged-run-1.json").unlink()
    assert pairs_study.main(options) == 0
    assert ran == [("unchanged-run-1", False)]
    assert "quantized, 5 %" in capsys.readouterr().out
