"""Results of a card that does not exist: whole, consistent, and marked as made up."""

from pathlib import Path

import pytest

from llama_perf.results.run import Verdict, read_report
from llama_perf.strict_json import to_json
from scripts.studies.made_up_run import made_up_report, main, rows


def test_its_rows_are_those_of_two_sets_with_every_kind_of_verdict(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.json"
    main([str(path)])
    report = read_report(path)
    assert len(report.results) == 86
    assert path.read_text(encoding="utf-8") == to_json(made_up_report())
    verdicts = {comparison.verdict for comparison in report.comparisons}
    assert verdicts == set(Verdict) - {Verdict.NOT_COMPARED}
    assert any(one.why for one in report.comparisons)
    assert any(one.change_interval for one in report.comparisons)
    assert any(one.processes and one.before for one in report.comparisons)
    worse = [one for one in report.comparisons if one.verdict is Verdict.WORSE]
    speeds = [one.changes[0].change for one in worse]
    assert min(speeds) < -0.03 < 0.1 < max(speeds), "one is slower, one faster"
    assert any("closer than the baseline" in one.reason for one in report.comparisons)
    assert report.environment_changes
    assert "made up" in str(report.note)
    assert "Made-up" in report.environment.device_name


def test_each_measurement_agrees_with_itself() -> None:
    for result in made_up_report(10).results:
        figures = result.measurement
        assert figures is not None
        assert figures.token_ns is not None
        for sample, first, tokens in zip(
            figures.sample_ns, figures.first_token_ns, figures.token_ns, strict=True
        ):
            assert sample == first + sum(tokens)
            assert len(tokens) == result.row.max_new_tokens - 1
        assert figures.memory is not None
        parts = figures.memory.weights_bytes + figures.memory.cache_bytes
        assert figures.peak_allocated_bytes is not None
        assert parts < figures.peak_allocated_bytes < figures.peak_memory_bytes
        assert figures.bandwidth_gb_s < (figures.device_bandwidth_gb_s or 0.0)


def test_more_rows_are_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({row.id for row in rows(500)}) == 500
    assert rows(500)[:86] == rows(86)
    for count in ("0", "689"):
        with pytest.raises(SystemExit, match=f"--rows {count}: allowed: 1 to 688"):
            main(["unwritten.json", "--rows", count])
    with pytest.raises(SystemExit):
        main(["/no/such/folder/run.json"])
    assert "its folder does not exist" in capsys.readouterr().err
