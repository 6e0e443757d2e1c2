"""A run beside a neighbour: marked and explained, with a baseline and without."""

import re
from typing import Any
from unittest.mock import Mock

import pytest

from llama_perf.measure import timing
from llama_perf.results.measurement import SystemLoad
from llama_perf.results.run import Verdict
from tests.correctness.support.plugin_project import PLAIN, Project

pytest_plugins = ["pytester"]
LOAD = SystemLoad(
    seconds=1.0, cores=2, threads=2, other_cores=0.9, steal_share=0.03, load_average=2.4
)
WORDS = "other processes took 0.9 of 2 cores, steal 3%, load average 2.4"


@pytest.fixture
def seen(project: Project) -> list[str]:
    """What ran before the machine was watched, for rows that are all disturbed."""
    steps: list[str] = []
    measure = timing.measure_row

    def measure_row(*arguments: Any, progress: Any, **options: Any) -> Any:
        def step(text: str) -> None:
            steps.append(text)
            progress(text)

        return measure(*arguments, progress=step, **options)

    def watch(_device: object) -> Mock:
        steps.append("watched")
        return Mock(load=lambda: LOAD)

    project.patch.setattr("llama_perf.run.session.measure_row", measure_row)
    project.patch.setattr(timing, "LoadWatch", watch)
    return steps


def test_a_first_run_says_by_what_it_was_disturbed(
    project: Project, seen: list[str]
) -> None:
    out, progress = project.cli(*project.run_words("--row", PLAIN))
    assert re.search(r"^\S.* NOT_COMPARED\*$", out, re.MULTILINE)
    assert f"\ndisturbed (*): {PLAIN}: {WORDS}\n" in out
    assert " tok/s  disturbed  " in progress
    # Samples only.
    assert seen[:3] == ["warming up", "watched", "sample 1 of 2"]
    (result,) = project.report().results
    assert result.measurement is not None
    assert result.measurement.load == LOAD


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(
    ("stored", "verdict", "looks"),
    [(1e-3, Verdict.SAME, "faster"), (1e6, Verdict.UNDECIDED, "slower")],
)
@pytest.mark.parametrize("front", ["pytest", "command"])
def test_stored_figures_alone_decide_nothing(
    project: Project, front: str, stored: float, verdict: Verdict, looks: str
) -> None:
    # Sizes with which the row is not SMALLER.
    project.record(tok_s=stored, model_size_bytes=80_512, peak_memory_bytes=10**7)
    fails = verdict is Verdict.UNDECIDED
    if front == "pytest":
        result = project.run("--benchmark-compare", "--row", PLAIN)
        assert result.ret == fails
        out = result.stdout.str()
    else:
        words = project.run_words("--compare", "--row", PLAIN)
        out, _ = project.cli(*words, code=int(fails))
    assert f"\ndisturbed (*): {PLAIN}: {WORDS}\n" in out
    assert re.search(rf"^\S.* {verdict.value}\*$", out, re.MULTILINE)
    reason = next(line for line in out.splitlines() if f"{PLAIN}: " in line)
    assert reason.startswith(f"{verdict.value} {PLAIN}: ")
    assert reason.endswith(f"; looks {looks}, but was disturbed: {WORDS}")
    (comparison,) = project.report().comparisons
    assert comparison.bandwidth_share == 1.0
