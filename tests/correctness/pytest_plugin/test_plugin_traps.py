"""pytest-benchmark's traps: each works, or is refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.correctness.support.plugin_project import INT8, PLAIN, ROOT, Project

pytest_plugins = ["pytester"]
USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
SURPASSED = 1e-6


def refusal_of(result: pytest.RunResult) -> str:
    """The one line of a usage error."""
    assert result.ret == USAGE_ERROR
    lines = [line for line in result.stderr.lines if line.startswith("ERROR: ")]
    assert len(lines) == 1, result.stderr.str()
    assert "Traceback" not in result.stderr.str()
    return lines[0].removeprefix("ERROR: ")


def test_a_path_that_compare_swallowed(project: Project) -> None:
    result = project.pytester.runpytest_inprocess("--benchmark-compare", "tests/perf")
    assert refusal_of(result) == (
        "--benchmark-compare took 'tests/perf' as its value; put paths first: pytest"
        " tests/perf --benchmark-compare"
    )


@pytest.mark.parametrize("flag", ["--benchmark-disable", "--benchmark-skip"])
def test_compare_without_measuring(project: Project, flag: str) -> None:
    assert flag in refusal_of(project.run("--benchmark-compare", flag))


def test_compare_with_pytest_benchmarks_own_limits(project: Project) -> None:
    limits = "--benchmark-compare-fail=mean:5%"
    assert "saved runs of pytest-benchmark" in refusal_of(
        project.run("--compare", limits)
    )


def test_compare_under_xdist(project: Project) -> None:
    assert "xdist" in refusal_of(project.run("--benchmark-compare", "-n", "2"))


def test_rows_under_xdist(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: xdist's workers are processes of their own.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = project.pytester.runpytest_subprocess(
        "tests/perf", "--rows=rows.toml", "--checkpoints=checkpoints", "-n", "1"
    )
    assert result.ret == USAGE_ERROR
    result.stdout.fnmatch_lines(["*rows cannot run under xdist*"])


def test_a_json_file_in_a_folder_that_is_not_there(project: Project) -> None:
    result = project.run("--benchmark-json=nowhere/out.json")
    assert "'nowhere/out.json' is not allowed; its folder" in refusal_of(result)
    assert not (project.path / ".llama-perf").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--set=gpu", "rows: "),
        ("--row=*int9*", "row: '*int9*' is not allowed; no id matches"),
        ("--rows=none.toml", "none.toml' cannot be read"),
        ("--checkpoints=none", "checkpoints: "),
        ("--inject-slowdown=fast", "inject-slowdown: 'fast' is not allowed"),
        ("--inject-slowdown=*=-5", "inject-slowdown: '*=-5' is not allowed"),
        ("--inject-slowdown=*fp7*=50", "inject-slowdown: '*fp7*' is not allowed; no"),
        ("--results=rows.toml/last.json", "results: "),
        ("--markdown=checkpoints", "it is a folder; give a file"),
        ("--benchmark-compare=0042", "'0042' names no saved run"),
        ("--benchmark-compare=rows.toml", "rows.toml: "),
    ],
)
def test_a_wrong_option_is_one_line(
    project: Project, option: str, message: str
) -> None:
    assert message in refusal_of(project.run(option))


def test_an_unknown_set(project: Project) -> None:
    result = project.pytester.runpytest_inprocess("tests/perf", "--set=gpu")
    assert refusal_of(result).startswith(
        "set: 'gpu' is not allowed; allowed: batch, cpu, "
    )


def test_a_damaged_baseline_is_named_before_anything_runs(project: Project) -> None:
    project.run()
    path = project.record()
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    results = (project.path / ".llama-perf" / "last.json").read_bytes()
    assert str(path) in refusal_of(project.run("--benchmark-compare"))
    assert (project.path / ".llama-perf" / "last.json").read_bytes() == results


@pytest.mark.parametrize("folder", [".", "tests", "tests/perf", "elsewhere"])
def test_baselines_and_storage_are_the_rootdirs(
    project: Project, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    project.run()
    project.record(tok_s=SURPASSED)
    (project.path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(project.path / folder)
    result = project.run("--benchmark-compare", "--benchmark-save=one")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["3 rows: 2 run, 1 NOT_RUN (2 FASTER)"])
    assert len(list(project.path.glob(".benchmarks/*/0001_one.json"))) == 1
    assert not (project.path / folder / "x" / ".benchmarks").exists()
    assert folder == "." or not (project.path / folder / ".benchmarks").exists()


def test_a_partial_save_does_not_become_the_baseline(project: Project) -> None:
    project.run()
    project.record(tok_s=SURPASSED)
    project.run("--row", "*int8wo*", "--benchmark-save=partial")
    result = project.run("--benchmark-compare")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["baseline: *baselines*baseline.json, recorded *"])


def test_a_partial_save_is_not_taken_where_there_is_no_baseline(
    project: Project,
) -> None:
    project.run("--benchmark-save=partial")
    result = project.run("--benchmark-compare")
    result.assert_outcomes(failed=2, skipped=1)
    result.stdout.fnmatch_lines([f"NO_BASELINE {PLAIN}: *"])


def slow_down(path_text: str) -> str:
    """A saved run whose records say that every row was far faster.

    The quantized one's ratio to the unquantized one too.
    """
    saved = json.loads(path_text)
    for row in saved["llama_perf"]["rows"]:
        quantized = "quantization" in row["row"]
        row["measurement"]["tok_s"] = 1e24 if quantized else 1e12
    return json.dumps(saved)


def test_a_saved_run_can_be_compared_with_by_number_and_by_path(
    project: Project,
) -> None:
    project.run("--benchmark-save=one")
    (saved,) = project.path.glob(".benchmarks/*/0001_one.json")
    saved.write_text(slow_down(saved.read_text(encoding="utf-8")), encoding="utf-8")
    copy = project.path / "copy.json"
    shutil.copy(saved, copy)
    for value in ("0001", str(copy), "copy.json"):
        result = project.run(f"--benchmark-compare={value}")
        result.assert_outcomes(failed=2, skipped=1)
        result.stdout.fnmatch_lines([f"SLOWER {INT8}: *"])


def test_a_saved_run_of_another_suite_is_refused(project: Project) -> None:
    project.run("--benchmark-json=other.json")
    saved = json.loads((project.path / "other.json").read_text(encoding="utf-8"))
    del saved["llama_perf"]
    (project.path / "other.json").write_text(json.dumps(saved), encoding="utf-8")
    result = project.run("--benchmark-compare=other.json")
    assert "it holds no llama-perf records" in refusal_of(result)


def test_a_baseline_of_another_device_does_not_compare(project: Project) -> None:
    project.run()
    path = project.record(tok_s=SURPASSED)
    text = path.read_text(encoding="utf-8")
    key = project.report().environment.device_key
    path.write_text(text.replace(key, "cpu-another-64c"), encoding="utf-8")
    result = project.run("--benchmark-compare")
    # It is reported: whoever has another device can do nothing about it.
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines([f"INCOMPARABLE {PLAIN}: *of another device, *"])


def test_other_tests_run_with_the_rows(project: Project) -> None:
    other = project.path / "tests" / "perf" / "test_other.py"
    other.write_text("def test_other(benchmark):\n    benchmark(lambda: 1)\n", "utf-8")
    result = project.run()
    result.assert_outcomes(passed=3, skipped=1)
