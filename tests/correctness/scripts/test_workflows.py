"""The workflows of continuous integration run things that exist, within bounds."""

import argparse
import re
import shlex
import subprocess
import sys
from itertools import chain, pairwise
from typing import Any

import pytest
import yaml

from llama_perf.cli.main import COMMANDS, main
from llama_perf.cli.no_command import print_help
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


def words_of(command: str) -> list[str]:
    """The words of a step's shell, without its comments."""
    return shlex.split(command.replace("\\\n", " "), comments=True)


@each_workflow
def test_a_workflow_is_bounded_and_asks_for_little(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    # That of a job is not taken by runs which leave the job out.
    (first, *_) = workflow["jobs"].values()
    assert "group" in workflow.get("concurrency", first.get("concurrency"))
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
        words = words_of(command)
        used |= {after for word, after in pairwise(words) if word == "make"}
        for word in words:
            assert not word.startswith(("scripts/", "tests/")) or (ROOT / word).exists()
    assert used <= targets
    assert used & {"test", "test-all", "bench"}


# What needs more than to read the repository, and what for.
PERMISSIONS = {
    ("gpu-perf.yml", "comment"): {"contents": "read", "pull-requests": "write"},
    ("gpu-perf.yml", "history"): {"contents": "write"},
    ("gpu-perf.yml", "pages"): {"pages": "write", "id-token": "write"},
}


def test_a_job_may_write_only_what_it_is_there_for() -> None:
    found = {
        (name, job_name): job["permissions"]
        for name, workflow in WORKFLOWS.items()
        for job_name, job in workflow["jobs"].items()
        if "permissions" in job
    }
    assert found == PERMISSIONS


def test_no_fork_meets_a_token_that_writes() -> None:
    jobs = WORKFLOWS["gpu-perf.yml"]["jobs"]
    same = "github.event.pull_request.head.repo.full_name == github.repository"
    assert same in jobs["rows"]["if"]
    assert same in WORKFLOWS["multi-gpu-perf.yml"]["jobs"]["rows"]["if"]
    # A job that was skipped has no output, nor has one whose set-up failed.
    ran = "needs.rows.outputs.has-results == 'true'"
    output = "${{ steps.summary.outputs.has-results }}"
    assert jobs["rows"]["outputs"] == {"has-results": output}
    for name, event in (("comment", "pull_request"), ("history", "schedule")):
        assert jobs[name]["needs"] == "rows"
        condition = " ".join(jobs[name]["if"].split())
        assert condition == f"always() && github.event_name == '{event}' && {ran}"
    assert jobs["pages"]["needs"] == "history"
    for name in ("rows", "comment"):
        steps = [step for step in jobs[name]["steps"] if "env" in step]
        tokens = [step["name"] for step in steps if "GH_TOKEN" in step["env"]]
        assert tokens == ["Comment"] * (name == "comment")


def test_a_loss_fails_the_job_after_all_is_saved() -> None:
    steps = WORKFLOWS["gpu-perf.yml"]["jobs"]["history"]["steps"]
    names = [step.get("name", step.get("uses")) for step in steps]
    assert names[-4:] == ["Keep", "Draw", "actions/upload-artifact@v4", "Check"]


COMMANDS_RUN = [
    command
    for name in WORKFLOWS
    for run in step_values(name, "run")
    for command in re.findall(r"\.venv/bin/llama-perf ((?:\\\n|.)*)", run)
]


@pytest.mark.parametrize("command", COMMANDS_RUN, ids=lambda text: text.split("\n")[0])
def test_the_commands_take_these_options(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(command.replace("$NUMBER", "7"))
    module = COMMANDS[words[0]]
    seen: list[argparse.Namespace] = []

    def only_parsed(arguments: argparse.Namespace) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr(module, "main", only_parsed)
    assert main(words) == 0
    (arguments,) = seen
    # An action has one, and it is not the one that prints the help.
    assert getattr(arguments, "act", None) is not print_help
    for path in getattr(arguments, "report", None) or []:
        assert path.suffix == ".html"


def test_the_commands_are_these() -> None:
    begun = sorted({" ".join(words_of(command)[:2]) for command in COMMANDS_RUN})
    assert [words.split(" $")[0] for words in begun] == [
        "comment",
        "doctor",
        "history add",
        "history check",
        "history show",
    ]


SHARED_OPTIONS = ("--row", "--report", "--baseline-patch", "--results")
GPU_OPTIONS = {
    "gpu-perf.yml": (*SHARED_OPTIONS, "--benchmark-json"),
    "multi-gpu-perf.yml": (*SHARED_OPTIONS, "--set", "--row-timeout"),
}


def test_there_are_four() -> None:
    assert WORKFLOWS.keys() == {*GPU_OPTIONS, "nightly.yml", "tests.yml"}


@pytest.mark.parametrize("name", GPU_OPTIONS)
def test_the_options_of_a_gpu_run_are_named(name: str) -> None:
    (command,) = (run for run in step_values(name, "run") if "--row" in run)
    assert set(re.findall(r"--[a-z-]+", command)) == set(GPU_OPTIONS[name])
    files = set(re.findall(r"\$RUNNER_TEMP/([\w.]+)", command))
    upload = WORKFLOWS[name]["jobs"]["rows"]["steps"][-1]["with"]["path"]
    assert set(re.findall(r"}}/([\w.]+)", upload)) == files


@pytest.fixture(scope="module")
def shown() -> str:
    command_line = [sys.executable, "-m", "pytest", "--help"]
    return subprocess.check_output(command_line, cwd=ROOT, text=True)


@pytest.mark.parametrize("option", sorted({*chain(*GPU_OPTIONS.values())}))
def test_the_options_of_the_gpu_run_are_the_plugins(option: str, shown: str) -> None:
    assert re.search(rf"^ +{option}\b", shown, re.MULTILINE), option
