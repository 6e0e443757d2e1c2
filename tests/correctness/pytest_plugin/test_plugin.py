"""The verdicts of `pytest tests/perf --benchmark-compare`, and how they fail a run."""

from __future__ import annotations

import json
from itertools import count
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from torch import Tensor

from llama_perf.errors import RecordError
from llama_perf.gate import baselines
from llama_perf.llama.engine import Engine
from llama_perf.measure import timing as measuring
from llama_perf.results.verdict import Verdict
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, ROWS, Project
from tests.correctness.support.record_samples import FIXED_LIMIT

pytest_plugins = ["pytester"]
# Speeds that no machine has: a baseline far above makes a row slower for sure, one
# far below makes it faster, whatever else this machine is doing.
UNREACHED, SURPASSED = 1e12, 1e-6


def test_without_a_comparison_rows_are_measured_and_pass(project: Project) -> None:
    result = project.run()
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2, skipped=1)
    assert project.verdicts() == {
        PLAIN: Verdict.NOT_COMPARED,
        INT8: Verdict.NOT_COMPARED,
        FP6: Verdict.NOT_RUN,
    }
    result.stdout.fnmatch_lines(
        [
            f"*1/3] {PLAIN}: building, warming up, sample 1 of 2, sample 2 of 2, *",
            f"*3/3] {FP6}: building, NOT_RUN: scheme fp6 is not built*",
            "*llama-perf*",
            "row * tok/s * change * decode tok/s * first token ms * GB/s *"
            " % of bandwidth * peak GB * change * model GB * verdict",
            f"NOT_RUN {FP6}: scheme fp6 is not built*",
            "3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)",
        ]
    )


def test_no_baseline_fails_every_row_and_says_how_to_record_one(
    project: Project,
) -> None:
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            f"NO_BASELINE {PLAIN}: no baseline for this device",
            "2 of 3 rows have no baseline for this device (*); record one with:",
            "  *baseline record --rows *rows.toml --checkpoints *",
        ]
    )


def test_no_baseline_is_only_reported_where_that_is_allowed(project: Project) -> None:
    result = project.run("--benchmark-compare", "--on-missing-baseline=report")
    assert result.ret == pytest.ExitCode.OK
    assert set(project.verdicts().values()) == {Verdict.NO_BASELINE, Verdict.NOT_RUN}
    result.stdout.fnmatch_lines(["*record one with:"])


def test_a_slower_row_is_a_failed_test_with_its_reason(project: Project) -> None:
    project.run()
    project.record(tok_s=UNREACHED)
    junit = project.path / "junit.xml"
    options = ("--row", PLAIN, f"--junitxml={junit}")
    result = project.run("--benchmark-compare", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    measurement = project.report().results[0].measurement
    assert measurement is not None
    tok_s = measurement.tok_s
    reason = (
        f"SLOWER {PLAIN}: tok/s 1000000000000.00 -> {tok_s:.2f} (-100.0%); tok/s per"
        f" GB/s of the device 50000000000.000 -> {tok_s / 20:.3f}"
        f" (-100.0%, limit 25.0%){FIXED_LIMIT}"
    )
    result.stdout.fnmatch_lines([f"*test_row?{PLAIN}?*", reason])
    result.stdout.fnmatch_lines(["baseline: *baseline.json, recorded *"])
    failures = ElementTree.parse(junit).getroot().iter("failure")
    assert [str(failure.get("message"))[:6] for failure in failures] == ["Failed"]
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_second_run_passes_against_the_first(project: Project) -> None:
    project.run()
    project.record(tok_s=SURPASSED)
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.OK
    assert project.verdicts()[PLAIN] is Verdict.FASTER
    result.stdout.fnmatch_lines(["baseline: *baseline.json, recorded *"])


def test_a_failed_compiled_row_shows_its_line_and_no_log(project: Project) -> None:
    rows = project.path / "rows.toml"
    rows.write_text(ROWS.partition("[[row]]")[0] + "compile = true\n[[row]]\n")
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "torch.__trace" not in result.stdout.str()


def test_memory_beyond_the_limit_fails(project: Project) -> None:
    project.run()
    project.record(tok_s=SURPASSED, model_size_bytes=1)
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"LARGER {PLAIN}: model size 0.000 GB -> *"])


@pytest.fixture
def a_step_takes_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have time pass by steps: a neighbour hides the speed of a few tokens."""
    decode, steps = Engine.decode, [0]

    def counted(engine: Engine, token: Tensor, position: Tensor) -> Tensor:
        steps[0] += 1
        return decode(engine, token, position)

    moments = count()
    clock = SimpleNamespace(
        perf_counter=lambda: steps[0] * 1e-3,
        # The prompt's part, which no step is, takes a nanosecond.
        perf_counter_ns=lambda: next(moments) + steps[0] * 1_000_000,
    )
    monkeypatch.setattr(Engine, "decode", counted)
    monkeypatch.setattr(measuring, "time", clock)


@pytest.mark.usefixtures("a_step_takes_a_millisecond")
def test_the_slowdown_switch_makes_its_row_fail_and_no_other(project: Project) -> None:
    project.run()
    project.record()
    slow = "--inject-slowdown=*int8wo*=1000"
    result = project.run("--benchmark-compare", slow)
    assert project.verdicts() == {
        PLAIN: Verdict.SAME,
        INT8: Verdict.SLOWER,
        FP6: Verdict.NOT_RUN,
    }
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            f"SLOWER {INT8}: tok/s *; * (-*%, limit 25.0%){FIXED_LIMIT}",
            f"injected slowdown*{INT8}",
        ]
    )
    with pytest.raises(RecordError, match="injected slowdown"):
        project.record()


def test_x_and_lf_see_a_regressed_row(project: Project) -> None:
    project.run()
    project.record(tok_s=UNREACHED)
    stopped = project.run("--benchmark-compare", "-x")
    stopped.assert_outcomes(failed=1)
    stopped.stdout.fnmatch_lines(["1 row: 1 run*; stopped before 2 more"])
    rerun = project.run("--benchmark-compare", "--lf")
    rerun.assert_outcomes(failed=1)
    assert [result.id for result in project.report().results] == [PLAIN]


def test_a_row_that_changed_under_its_id_does_not_pass(project: Project) -> None:
    project.run()
    path = project.record(tok_s=SURPASSED)
    text = path.read_text(encoding="utf-8")
    fingerprint = baselines.read(path).rows[0].fingerprint
    path.write_text(text.replace(fingerprint, "0" * 16), encoding="utf-8")
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts()[PLAIN] is Verdict.INCOMPARABLE


def test_a_row_that_breaks_fails_and_the_others_are_kept(project: Project) -> None:
    project.edit_rows('"fp6"', '"int4wo-64"')
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["INVALID tiny.int4wo-64*: *group size 64 must*"])
    results = project.report().results
    assert [result.measurement is None for result in results] == [False, False, True]


def test_a_stale_row_of_the_baseline_is_reported(project: Project) -> None:
    project.run()
    path = project.record(tok_s=SURPASSED)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"id": "{PLAIN}"', '"id": "gone"'), "utf-8")
    result = project.run("--benchmark-compare")
    result.stdout.fnmatch_lines(["in the baseline but in no set: gone"])
    assert project.verdicts()[PLAIN] is Verdict.NO_BASELINE
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_selecting_rows_makes_no_other_row_stale(project: Project) -> None:
    project.run()
    project.record(tok_s=SURPASSED)
    result = project.run("--benchmark-compare", "--row", "*int8wo*")
    assert result.ret == pytest.ExitCode.OK
    assert list(project.verdicts()) == [INT8]
    result.stdout.no_fnmatch_line("in the baseline but in no set*")
    assert project.run("-k", "int8wo").ret == pytest.ExitCode.OK
    assert list(project.verdicts()) == [INT8]


def test_markdown_and_results_go_where_they_are_sent(project: Project) -> None:
    result = project.run("--markdown=table.md", "--results=out/saved.json")
    assert result.ret == pytest.ExitCode.OK
    text = (project.path / "table.md").read_text(encoding="utf-8")
    assert text.startswith("### llama-perf: 3 rows: 2 run, 1 NOT_RUN")
    assert "| verdict" in text
    saved = json.loads((project.path / "out/saved.json").read_text(encoding="utf-8"))
    assert [row["id"] for row in saved["results"]] == [PLAIN, INT8, FP6]


def test_saved_times_are_those_of_the_samples(project: Project) -> None:
    path = project.path / "saved.json"
    assert project.run(f"--benchmark-json={path}").ret == pytest.ExitCode.OK
    saved = json.loads(path.read_text(encoding="utf-8"))
    first = saved["benchmarks"][0]
    measurement = project.report().results[0].measurement
    assert measurement is not None
    assert first["stats"]["data"] == pytest.approx(
        [duration / 1e9 for duration in measurement.sample_ns]
    )
    assert first["extra_info"]["tok_s"] == measurement.tok_s
    assert first["extra_info"]["row"] == PLAIN
    assert "UNSERIALIZABLE" not in path.read_text(encoding="utf-8")
    machine = saved["machine_info"]["llama_perf"]
    assert machine["device_key"] == project.report().environment.device_key
