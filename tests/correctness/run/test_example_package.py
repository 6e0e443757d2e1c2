"""The package in examples/, installed as a user does, from its rows to a verdict."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from llama_perf.results.run import Report, Status
from llama_perf.rows import plugins
from llama_perf.strict_json import read_json
from tests.correctness.support.plugin_project import ROOT, write_tiny
from tests.correctness.support.processes import HANG_S

EXAMPLE = ROOT / "examples" / "llama-perf-example-scheme"
PIP = ("pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-compile")
NF4 = "smollm2-135m-instruct.example-nf4.own.fp32.cpu.eager.fused.new-16"
UINTX = "smollm2-135m-instruct.uintx-4-32.fp32.cpu.eager.fused.new-16"


def test_the_example_runs_from_its_set_to_a_verdict(tmp_path: Path) -> None:
    # Building leaves files beside the source.
    source = shutil.copytree(EXAMPLE, tmp_path / "source")
    target = tmp_path / "installed"
    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"}
    del environment[plugins.OFF]

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*PIP, *OFFLINE, "--target", str(target), str(source))
    # Small, under the name that the rows have.
    write_tiny(tmp_path / "models" / "SmolLM2-135M-Instruct")
    rows = "--set", "example-nf4", "--row", "*4*eager*"
    where = "--checkpoints", "models", "--results", "results.json", "--closeness"
    shown = run("llama_perf", "run", *rows, *where)
    assert "2 rows: 2 run, 0 NOT_RUN (2 NOT_COMPARED)" in shown
    report = read_json(Report, tmp_path / "results.json")
    assert [result.id for result in report.results] == [UINTX, NF4]
    for result in report.results:
        assert result.status is Status.MEASURED
        assert result.measurement is not None
        check = result.measurement.check
        assert check is not None
        assert check.signal_to_noise_db > 90
        # Random weights in four bits: 10 to 12 dB from the unquantized ones.
        closeness = result.measurement.closeness
        assert closeness is not None
        assert 5 < closeness.db < 20
