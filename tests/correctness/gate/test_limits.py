"""Limits that a user sets: in pyproject.toml, in a file of rows, for one row."""

from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.errors import UserError
from llama_perf.gate.judgements import limits_of
from llama_perf.results.measurement import StepWork
from llama_perf.results.run import Verdict
from llama_perf.rows import selection
from llama_perf.rows.limit_overrides import Limits, ProjectLimits, project_limits
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.plugin_project import INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    baseline_of,
    compare,
    measured,
)

pytest_plugins = ["pytester"]
PROJECT = """
[tool.llama-perf.limits]
peak_memory = 0.5
least_loss = 0.02

[tool.llama-perf.limits."*.cpu.*"]
least_loss = 0.03
calls = 0
"""


def read(folder: Path, text: str) -> ProjectLimits:
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return project_limits(path)


def test_what_is_set_nearest_to_a_row_holds(tmp_path: Path) -> None:
    nothing = project_limits(tmp_path / "pyproject.toml")
    for row in (CPU_ROW, CUDA_ROW):
        assert limits_of(row, nothing) == limits_of(row)
    project = read(tmp_path, PROJECT)
    cuda, cpu = limits_of(CUDA_ROW, project), limits_of(CPU_ROW, project)
    changed = {"peak_memory": 0.5, "least_loss": 0.02}
    assert cuda == limits_of(CUDA_ROW) | changed
    assert cpu == limits_of(CPU_ROW) | changed | {"least_loss": 0.03, "calls": 0}
    own = replace(CPU_ROW, limits=Limits({"least_loss": 0.2}))
    assert limits_of(own, project) == cpu | {"least_loss": 0.2}
    assert own.fingerprint == CPU_ROW.fingerprint
    assert own.id == CPU_ROW.id


def test_a_file_of_rows_sets_them_for_all_and_for_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(
        """
        [defaults]
        model = "tiny"
        limits = { tok_s = 0.5, calls = 0.2 }
        [[row]]
        [[row]]
        quantization = "fp6"
        limits = { calls = 0.1 }
        """,
        encoding="utf-8",
    )
    first, second = selection.load_file(path)
    both = RowSpec(model="tiny", limits=Limits({"tok_s": 0.5, "calls": 0.2}))
    own = Limits({"tok_s": 0.5, "calls": 0.1})
    assert (first, second) == (both, replace(both, quantization="fp6", limits=own))
    assert from_json(RowSpec, to_json(second), source="row") == second
    assert {second: 1}[replace(second, limits=Limits(own))] == 1


LIMITS = "[tool.llama-perf.limits]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{LIMITS}peak = 1",
            "limits: peak: unknown limit; did you mean peak_memory? allowed: least",
        ),
        (f"{LIMITS}tok_s = 'much'", "tool.llama-perf.limits: tok_s: "),
        (f"{LIMITS}tok_s = 1.0", "tok_s: 1.0 is not allowed; allowed: a share from 0"),
        (f"{LIMITS}calls = -0.1", "calls: -0.1 is not allowed; allowed: 0 or more"),
        (f"{LIMITS}calls = inf", "calls: "),
        (f"{LIMITS}peak_memory_bytes = 0.5", "peak_memory_bytes: "),
        (f'{LIMITS}"*int8*" = {{calls = -1.0}}', "limits.'*int8*': "),
        (f'{LIMITS}"*int8*" = {{call = 1}}', "limits.'*int8*': call: unknown limit"),
        ("not TOML", "Invalid TOML: "),
        ("[tool.llama-perf]\nlimits = 3", "limits: it must be a table"),
        ("[tool]\nllama-perf = []", "tool.llama-perf: it must be a table"),
        ("tool = 3", "pyproject.toml: tool: it must be a table"),
        (f"{LIMITS}calls = 0x{'f' * 5000}", "limits: Exceeds the limit"),
    ],
)
def test_a_wrong_one_names_the_file_and_the_field(
    tmp_path: Path, text: str, message: str
) -> None:
    refused = refusal(read, tmp_path, text, error=UserError)
    assert message in refused
    assert refused.startswith(f"{tmp_path / 'pyproject.toml'}: ")


def test_each_metric_follows_its_limit() -> None:
    step = StepWork(calls=100.0, ms=1.0, operators=())
    then = baseline_of(
        measured(peak_allocated_bytes=10**9, step=step, graph_breaks=0, compilations=1)
    )
    worse = measured(
        tok_s=70.0,
        peak_memory_bytes=1_200_000_000,
        peak_allocated_bytes=1_200_000_000,
        model_size_bytes=600_000_000,
        step=replace(step, calls=120.0),
        graph_breaks=2,
        compilations=3,
    )
    usual = limits_of(CPU_ROW)
    shares = "peak_memory", "allocated_memory", "model_size", "calls"
    allowed = dict.fromkeys(shares, 0.3)
    allowed |= {"tok_s": 0.4, "graph_breaks": 2, "compilations": 2}
    assert compare(worse, then, project=[("*", allowed)]).verdict is Verdict.SAME
    for name in allowed:
        strict = allowed | {name: usual[name]}
        assert compare(worse, then, project=[("*", strict)]).failed, name


def test_pytest_reads_the_projects_and_the_files(project: Project) -> None:
    project.run()
    project.record(tok_s=1e12)
    path = project.path / "pyproject.toml"
    text = path.read_text(encoding="utf-8")

    def compared(limits: str) -> pytest.RunResult:
        path.write_text(f"{text}\n{limits}", encoding="utf-8")
        return project.run("--benchmark-compare")

    compared(f"[tool.llama-perf.limits.'{PLAIN}']\ntok_s = 0.999999999999\n")
    assert project.verdicts()[PLAIN] is not Verdict.SLOWER
    result = compared(f"{LIMITS}speed = 1\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*limits: speed: unknown limit; allowed: *"])
    compared("")
    verdicts = project.verdicts()
    assert verdicts[PLAIN] is Verdict.SLOWER
    assert INT8 in verdicts
