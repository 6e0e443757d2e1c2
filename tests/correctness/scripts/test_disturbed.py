"""The study of disturbed rows, from figures made up."""

from dataclasses import replace
from unittest.mock import Mock

import pytest

from llama_perf.results.measurement import Measurement, SystemLoad
from scripts.studies import disturbed
from tests.correctness.support.record_samples import CPU_ROW, MEASUREMENT


def process(seconds: float, other_cores: float, gb_s: float = 20.0) -> Measurement:
    load = SystemLoad(seconds=1.0, cores=2, threads=2, other_cores=other_cores)
    return replace(
        MEASUREMENT,
        sample_ns=(round(seconds * 1e9),),
        load=load,
        device_bandwidth_gb_s=gb_s,
    )


def test_rows_are_compared_with_those_alone_in_their_round() -> None:
    rounds = [
        [[process(alone_s, 0.02)], *[[process(2 * alone_s, 1.0)]] * 3, [slow]]
        for alone_s, slow in ((1.0, process(3.0, 0.0, 15.0)), (4.0, process(4.0, 0.0)))
    ]
    text = disturbed.table(rounds).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[2:]]
    alone, *_, last = cells
    assert [line[0] for line in cells[:2]] == ["nothing", "10% of a core"]
    assert alone[1:4] == ["0 of 2", "1.00 (1.00 to 1.00)", "1% (1% to 1%)"]
    assert cells[1][1:4] == ["2 of 2", "2.00 (2.00 to 2.00)", "50% (50% to 50%)"]
    # By its bandwidth, which is compared with that of the processes alone.
    assert last[1:3] == ["1 of 2", "2.00 (1.00 to 3.00)"]
    assert last[-1] == "88% (75% to 100%)"


def test_a_process_runs_all_rows_beside_its_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = Mock(result=Mock(measurement=MEASUREMENT))
    worker = Mock(run=Mock(return_value=result))
    monkeypatch.setattr(disturbed, "Worker", lambda **_: worker)
    assert disturbed.measurements([CPU_ROW] * 2, 0.0) == [MEASUREMENT] * 2
    worker.close.assert_called_once_with()


def test_the_ways_take_turns_and_the_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares: list[float] = []

    def measurements(rows: list[object], share: float) -> list[Measurement]:
        shares.append(share)
        return [process(1.0, 2 * share)] * len(rows)

    monkeypatch.setattr(disturbed, "measurements", measurements)
    disturbed.main(["--rounds", "2"])
    assert shares == [*disturbed.SHARES] * 2
    out = capsys.readouterr().out
    assert "; 2 rounds of 4 rows:\n\n| the loop takes" in out
    assert "| 0 of 8 " in out
    assert "| 8 of 8 " in out
