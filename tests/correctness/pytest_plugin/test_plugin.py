"""The verdicts of `pytest tests/perf --benchmark-compare`, and how they fail a run."""

import json
from dataclasses import replace
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
from torch import Tensor

from llama_perf.devices import base
from llama_perf.llama.engine import Engine
from llama_perf.results.run import Report, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import read_json
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import FIXED_LIMIT, Edit, edited, row_edit

pytest_plugins = ["pytester"]
# Speeds that no machine has: a baseline far above makes a row slower for sure, one
# far below makes it faster, whatever else this machine is doing.
UNREACHED, SURPASSED = 1e12, 1e-6


def test_rows_are_measured_shown_and_saved(project: Project) -> None:
    files = ("--report=a.md", "--report=b.csv", "--markdown=summary")
    saves = ("--results=out/saved.json", "--benchmark-json=times.json")
    result = project.run(*files, *saves, passed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "every row: tiny.fp32.cpu.eager.new-4.samples-2",
            "[[]1/3] none  started  0:0*",
            "[[]1/3] none  * tok/s  *.? s",
            "[[]3/3] fp6.torchao  started  0:0*",
            "[[]3/3] fp6.torchao * NOT_RUN: scheme fp6 is not built*",
            "*llama-perf*",
            "row * tok/s * spread % * change * decode tok/s * first token ms * GB/s *"
            " % of bandwidth * peak GB * change * model GB * verdict",
            f"NOT_RUN {FP6}: scheme fp6 is not built*",
            "3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)",
        ]
    )
    markdown = (project.path / "summary").read_text(encoding="utf-8")
    assert markdown.startswith("### llama-perf: 3 rows: 2 run, 1 NOT_RUN")
    assert "| verdict" in markdown
    assert (project.path / "a.md").read_text(encoding="utf-8") == markdown
    assert len((project.path / "b.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert not project.results.exists()
    report = read_json(Report, project.path / "out" / "saved.json")
    assert [row.id for row in report.results] == [PLAIN, INT8, FP6]
    verdicts = [row.verdict.name for row in report.comparisons]
    assert verdicts == ["NOT_COMPARED", "NOT_COMPARED", "NOT_RUN"]
    text = (project.path / "times.json").read_text(encoding="utf-8")
    assert "UNSERIALIZABLE" not in text
    times = json.loads(text)
    first, measurement = times["benchmarks"][0], report.results[0].measurement
    assert measurement is not None
    assert first["stats"]["data"] == pytest.approx(
        [duration / 1e9 for duration in measurement.sample_ns]
    )
    assert first["extra_info"]["tok_s"] == measurement.tok_s
    assert first["extra_info"]["row"] == PLAIN
    machine = times["machine_info"]["llama_perf"]
    assert machine["device_key"] == report.environment.device_key


def test_a_slower_row_is_a_failed_test_with_its_reason(project: Project) -> None:
    project.record(tok_s=UNREACHED)
    junit = project.path / "junit.xml"
    result = project.run("--benchmark-compare", "-x", f"--junitxml={junit}", failed=1)
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
    result.stdout.fnmatch_lines(["1 row: 1 run*; stopped before 2 more"])
    failures = ElementTree.parse(junit).getroot().iter("failure")
    assert [str(failure.get("message"))[:6] for failure in failures] == ["Failed"]
    result.stdout.no_fnmatch_line("*Traceback*")
    project.run("--benchmark-compare", "--lf", failed=1)
    assert [result.id for result in project.report().results] == [PLAIN]


def test_a_failed_compiled_row_shows_its_line_and_no_log(project: Project) -> None:
    head, *_ = project.rows.read_text(encoding="utf-8").partition("[[row]]")
    project.rows.write_text(f"{head}compile = true\n[[row]]\n", encoding="utf-8")
    result = project.run("--benchmark-compare", failed=1)
    assert "torch.__trace" not in result.stdout.str()


ROW = RowSpec(
    model="tiny", device="cpu", dtype="float32", max_new_tokens=4, num_samples=2
)
# An id has the model in small letters, and a fingerprint as it is written.
ANOTHER, GONE = replace(ROW, model="Tiny"), replace(ROW, model="gone")


@pytest.mark.parametrize(
    ("edit", "verdict", "line"),
    [
        ({"rows.0.measurement.model_size_bytes": 1}, Verdict.LARGER, "*size 0.000*"),
        (row_edit(ANOTHER), Verdict.INCOMPARABLE, "INCOMPARABLE *"),
        (
            row_edit(GONE),
            Verdict.NO_BASELINE,
            f"*but in no set or --rows file: {GONE.id}",
        ),
        # It is reported: whoever has another device can do nothing about it.
        (
            {"environment.device_key": "a"},
            Verdict.INCOMPARABLE,
            "* of another device, *",
        ),
    ],
    ids=["larger", "another row", "stale", "another device"],
)
def test_a_baseline_that_differs(
    project: Project, edit: Edit, verdict: Verdict, line: str
) -> None:
    path = edited(project.record(tok_s=SURPASSED), edit)
    outcome = "passed" if "device" in line else "failed"
    compared = f"--benchmark-compare={path}"
    result = project.run(compared, "--row=*none*", **{outcome: 1})
    assert project.verdicts() == {PLAIN: verdict}
    result.stdout.fnmatch_lines([line])


def test_the_slowdown_switch_makes_its_row_fail_and_no_other(project: Project) -> None:
    decode, now_ns = Engine.decode, [0]

    def decode_in_a_millisecond(engine: Engine, token: Tensor, at: Tensor) -> Tensor:
        now_ns[0] += 10**6
        return decode(engine, token, at)

    def read_clock() -> int:
        # The prompt's part, which no step is, takes a nanosecond.
        now_ns[0] += 1
        return now_ns[0]

    # Time passes by steps: a neighbour would hide the speed of a few tokens.
    project.patch.setattr(Engine, "decode", decode_in_a_millisecond)
    project.patch.setattr(base, "time", Mock(perf_counter_ns=read_clock))
    project.run()
    folder = ("--baselines", str(project.path / "baselines"))
    project.cli("baseline", "record", "--from", str(project.results), *folder)
    slow = "--inject-slowdown=*int8wo*=1000%"
    result = project.run("--benchmark-compare", slow, passed=1, failed=1, skipped=1)
    assert project.verdicts() == {
        PLAIN: Verdict.SAME,
        INT8: Verdict.SLOWER,
        FP6: Verdict.NOT_RUN,
    }
    result.stdout.fnmatch_lines(
        [
            f"SLOWER {INT8}: tok/s *; * (-*%, limit 25.0%){FIXED_LIMIT}",
            f"injected slowdown of 1000% in {INT8}: *",
        ]
    )
    measurements = [result.measurement for result in project.report().results]
    assert [now and now.injected_slowdown for now in measurements] == [0, 10, None]


def test_a_row_that_breaks_fails_and_the_others_run(project: Project) -> None:
    other = project.path / "tests" / "perf" / "test_other.py"
    other.write_text("def test_other(benchmark):\n    benchmark(lambda: 1)\n", "utf-8")
    project.edit('"fp6"', '"int4wo-64"')
    result = project.run(passed=3, failed=1)
    result.stdout.fnmatch_lines(["INVALID tiny.int4wo-64*: *group size 64 must*"])
    results = project.report().results
    assert [result.measurement is None for result in results] == [False, False, True]


def test_selecting_rows_makes_no_other_row_stale(project: Project) -> None:
    project.record(tok_s=SURPASSED)
    for option in ("--row=*int8wo*", "-kint8wo", "--shard=2/3"):
        result = project.run("--benchmark-compare", option)
        assert result.ret == pytest.ExitCode.OK
        assert project.verdicts() == {INT8: Verdict.FASTER}
        result.stdout.no_fnmatch_line("in the baseline but in no set*")
    project.run("--shard=3/3", skipped=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--benchmark-compare --benchmark-disable", "with --benchmark-disable would"),
        ("--benchmark-compare --benchmark-skip", "with --benchmark-skip would compare"),
        ("--compare --benchmark-compare-fail=mean:5%", "saved runs of pytest-benchma"),
        ("--benchmark-compare -n 2", "rows cannot be compared under xdist"),
        ("--benchmark-json=no/x", "benchmark-json: 'no/x' is not allowed; its folder"),
        ("--rows=none.toml", "none.toml: cannot be read"),
        ("--checkpoints=none", "/none' is not allowed; no such folder"),
        ("--results=rows.toml/last.json", "results: "),
        ("--results=-", "results: '-' is not allowed; under pytest, give a file"),
        ("--benchmark-compare tests", "put paths first: pytest tests --benchmark-comp"),
        ("--benchmark-compare=0042", "'0042' names no saved run"),
        ("--benchmark-compare=rows.toml", "rows.toml: "),
        ("--resume", "last.json: cannot be read: No such file"),
        ("--row-timeout=0", "row-timeout: 0.0 is not allowed; allowed: a number"),
        ("--time-budget=-1", "time-budget: -1.0 is not allowed; allowed: a number of"),
        ("--time-budget=nan", "time-budget: nan is not allowed; allowed: a number of"),
        ("--time-budget=inf", "time-budget: inf is not allowed; allowed: a number of"),
        ("--isolate=none", "--isolate: invalid choice: 'none' (choose from "),
    ],
)
def test_a_wrong_option_is_one_line(project: Project, words: str, message: str) -> None:
    assert message in project.refusal(*words.split())
    assert not project.results.exists()


def test_rows_under_xdist(project: Project) -> None:
    # In a process of its own: xdist's workers are processes of their own.
    result = project.pytester.runpytest_subprocess(
        "tests/perf", "--rows=rows.toml", "--checkpoints=checkpoints", "-n", "1"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*rows cannot run under xdist*"])


def test_a_damaged_baseline_is_named_before_anything_runs(project: Project) -> None:
    path = project.record()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in project.refusal("--benchmark-compare")
    assert not project.results.exists()
    message = project.cli.refusal(*project.words("baseline", "record"))
    assert message.startswith(f"{path}: Invalid JSON")


@pytest.mark.parametrize("folder", [".", "tests", "tests/perf", "elsewhere"])
def test_baselines_and_storage_are_the_rootdirs(project: Project, folder: str) -> None:
    project.record(tok_s=SURPASSED)
    (project.path / folder).mkdir(exist_ok=True)
    project.patch.chdir(project.path / folder)
    # A partial save does not become the baseline.
    project.run("--compare", "--row=*int8wo*", "--benchmark-save=one", passed=1)
    result = project.run("--benchmark-compare", passed=2, skipped=1)
    result.stdout.fnmatch_lines(["baseline: *baselines*baseline.json, recorded *"])
    result.stdout.fnmatch_lines(["3 rows: 2 run, 1 NOT_RUN (2 FASTER)"])
    assert len(list(project.path.glob(".benchmarks/*/0001_one.json"))) == 1
    assert not (project.path / folder / "x" / ".benchmarks").exists()
    assert folder == "." or not (project.path / folder / ".benchmarks").exists()


def test_a_saved_run_is_named_by_number_or_path(project: Project) -> None:
    project.run("--benchmark-save=one")
    (path,) = project.path.glob(".benchmarks/*/0001_one.json")
    saved = json.loads(path.read_text(encoding="utf-8"))
    # Every row was far faster, and the quantized one's ratio to the other too.
    for row, tok_s in zip(saved["llama_perf"]["rows"], (1e12, 1e24), strict=True):
        row["measurement"] |= {"tok_s": tok_s, "sample_ns": []}
    copy = project.path / "copy.json"
    for file in (path, copy):
        file.write_text(json.dumps(saved), encoding="utf-8")
    for value in ("0001", str(copy), "copy.json"):
        result = project.run(f"--benchmark-compare={value}", failed=2, skipped=1)
        result.stdout.fnmatch_lines([f"SLOWER {INT8}: *"])
    # As another suite saves it.
    del saved["llama_perf"]
    copy.write_text(json.dumps(saved), encoding="utf-8")
    refusal = project.refusal("--benchmark-compare=copy.json")
    assert f"{copy}: it holds no llama-perf records; save one with" in refusal
