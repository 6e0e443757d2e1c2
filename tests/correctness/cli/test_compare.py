"""`llama-perf compare` with real processes: its lines, its table, its file."""

import re
import sys

import pytest

from llama_perf.results.run import Verdict
from llama_perf.run import paired
from llama_perf.run.worker import Worker
from tests.correctness.support.plugin_project import FP6, PLAIN, Project

pytest_plugins = ["pytester"]


def words_of(project: Project, *more: str) -> list[str]:
    project.results.parent.mkdir(exist_ok=True)
    words = ["compare", "--base-python", sys.executable, "--pairs", "4"]
    words += ["--rows", str(project.rows), "--checkpoints", "checkpoints"]
    return [*words, "--results", str(project.results), *more]


def test_this_environment_compared_with_itself(project: Project) -> None:
    project.patch.setattr(paired, "Worker", Worker)
    project.patch.delenv("PYTHONPATH")
    # The working directory's modules are not in the processes' way.
    (project.path / "torch.py").write_text("raise ImportError", encoding="utf-8")
    words = words_of(project, "--row", "*none*", "--row", "*fp6*")
    # What it decides on a busy core is not asked. A step too many is most of a sample.
    out, err = project.cli(*words, "--inject-slowdown", "*none*=50", code=None)
    found = r"a loss of \d+\.\d% is found 9 times in 10"
    line = rf"^\[1/2\] none +\d+\.\d\d tok/s .* pairs; {found}\)  "
    assert re.search(line, err, re.MULTILINE)
    assert "[2/2] fp6.torchao" in err
    assert f"baseline: {sys.executable}\n" in out
    report = project.report()
    decided, not_run = report.comparisons
    assert (decided.id, not_run.id) == (PLAIN, FP6)
    assert ", resident processes" in decided.reason
    assert decided.change_interval is not None
    assert not_run.verdict is Verdict.NOT_RUN
    measurement = report.results[0].measurement
    assert measurement is not None
    assert measurement.injected_slowdown == 0.5
    assert report.environment.device_key.startswith("cpu-")


def test_an_interrupt_keeps_what_was_compared(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(paired.PairedProcesses, "measure", interrupted)
    _, err = project.cli(*words_of(project), code=130)
    assert "interrupted before 3 of 3 rows" in err
