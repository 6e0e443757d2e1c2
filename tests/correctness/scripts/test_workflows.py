"""The workflows of continuous integration run things that exist, within bounds."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import yaml

from scripts import ROOT

WORKFLOWS: dict[str, dict[Any, Any]] = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def step_values(name: str, field: str) -> list[str]:
    """The values of a field in the steps of a workflow."""
    jobs = WORKFLOWS[name]["jobs"].values()
    return [step[field] for job in jobs for step in job["steps"] if field in step]


@each_workflow
def test_a_workflow_is_bounded_and_asks_for_little(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    assert all(job["timeout-minutes"] <= 240 for job in workflow["jobs"].values())
    assert step_values(name, "uses")
    for action in step_values(name, "uses"):
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action)


@each_workflow
def test_everything_that_a_workflow_runs_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = set()
    for command in step_values(name, "run"):
        words = shlex.split(command.replace("\\\n", " "))
        used |= {after for word, after in pairwise(words) if word == "make"}
        for word in words:
            assert not word.startswith(("scripts/", "tests/")) or (ROOT / word).exists()
    assert used <= targets
    assert used & {"test", "test-all", "bench"}


def test_there_are_three_and_the_options_of_the_gpu_run_are_the_plugins() -> None:
    assert WORKFLOWS.keys() == {"gpu-perf.yml", "nightly.yml", "tests.yml"}
    (command,) = (run for run in step_values("gpu-perf.yml", "run") if "--row" in run)
    command_line = [sys.executable, "-m", "pytest", "--help"]
    shown = subprocess.check_output(command_line, cwd=ROOT, text=True)
    options = re.findall(r"--[a-z-]+", command)
    assert {"--row", "--report", "--results", "--benchmark-json"} == set(options)
    for option in options:
        assert re.search(rf"^ +{option}\b", shown, re.MULTILINE), option
