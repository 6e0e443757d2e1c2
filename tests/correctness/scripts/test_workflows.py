"""The workflows of continuous integration run things that exist, within bounds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.offline.options import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def workflow(path: Path) -> dict[Any, Any]:
    parsed: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return parsed


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def test_there_are_two_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["gpu-perf.yml", "tests.yml"]


@each_workflow
def test_a_workflow_is_bounded_and_asks_for_little(path: Path) -> None:
    parsed = workflow(path)
    assert parsed["permissions"] == {"contents": "read"}
    assert "group" in parsed["concurrency"]
    for job in parsed["jobs"].values():
        assert job["timeout-minutes"] <= 240
    actions = [step["uses"] for step in steps_of(path) if "uses" in step]
    assert actions
    for action in actions:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action)


@each_workflow
def test_everything_that_a_workflow_runs_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    used = set()
    for command in [step["run"] for step in steps_of(path) if "run" in step]:
        words = shlex.split(command.replace("\\\n", " "))
        for before, word in zip(["", *words], words, strict=False):
            if before == "make":
                used.add(word)
            if word.startswith(("scripts/", "tests/")):
                assert (ROOT / word).exists(), word
    assert used <= targets
    assert used & {"test", "bench"}


def test_the_options_of_the_gpu_run_are_the_plugins() -> None:
    (command,) = (
        step["run"] for step in steps_of(WORKFLOWS[0]) if step.get("name") == "Rows"
    )
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    options = re.findall(r"--[a-z-]+", command)
    assert {"--row", "--report", "--results", "--benchmark-json"} == set(options)
    for option in options:
        assert re.search(rf"^ +{option}\b", shown, re.MULTILINE), option
