"""`--baseline-patch`: what `git apply` takes, of which rows, and what is refused."""

from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from unittest.mock import Mock

import pytest

from llama_perf.errors import SpecError
from llama_perf.results import baselines
from llama_perf.results.run import Status, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import baseline_patch
from llama_perf.run.options import RunRequest
from llama_perf.run.worker_protocol import WorkerResult
from tests.correctness.support.git_commands import git
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    OTHER,
    baseline_of,
    compare,
    measured,
    report_of,
    stored_in,
    unmeasured,
)
from tests.correctness.support.terminals import quiet

pytest_plugins = ["pytester"]


def committed(project: Project) -> Path:
    """The project as a checkout of git, and the path of its patch."""
    git(project.path, "init", "-q")
    git(project.path, "add", "baselines")
    git(project.path, "commit", "-q", "--allow-empty", "-m", "baselines")
    return project.path / "baseline.patch"


def stand_in(project: Project, *, breaks: tuple[int, str] | None = None) -> list[str]:
    """Processes that measure every row alike, but for one that breaks."""
    environment = baselines.read(project.record(slow=PLAIN)).environment

    def process(number: int, row: RowSpec) -> WorkerResult:
        if (number, row.id) == breaks:
            result = unmeasured(Status.INVALID, "out of memory", row)
            return WorkerResult(result=result, environment=None)
        result = measured(row, tok_s=100.0 + number, weights="pth:tiny")
        return WorkerResult(result=result, environment=environment)

    return project.stand_in(process)


OPTIONS = ("--compare", "--no-confirm", "--on-undecided=report")


@pytest.mark.parametrize("front", ["pytest", "command"])
def test_a_faster_row_is_offered_as_a_recording_would_have_it(
    project: Project, front: str
) -> None:
    ids = stand_in(project)
    patch = committed(project)
    options = (*OPTIONS, "--baseline-patch", str(patch))
    if front == "pytest":
        output = project.run(*options, passed=2, skipped=1).stdout.str()
    else:
        output, progress = project.cli(*project.run_words(*options))
        assert "baseline-patch: 1 row in 5 fresh processes each\n" in progress
    assert project.verdicts()[INT8] is Verdict.FASTER
    assert project.verdicts()[PLAIN] is Verdict.UNDECIDED
    assert ids == [INT8] * 5
    said = f"baseline-patch: {patch} has 1 row (1 FASTER);\n  git apply {patch}\n"
    assert said in output
    git(project.path, "apply", str(patch))
    (path,) = (project.path / "baselines").glob("*/baseline.json")
    applied = path.read_text(encoding="utf-8")
    recorded = baselines.parse(applied, source="applied").recorded
    git(project.path, "checkout", "-q", ".")
    old = baselines.read(path)
    ids.clear()
    project.cli(*project.words("baseline", "record", "--row", INT8))
    again = baselines.read(path)
    # The second recording is one of another second.
    text = path.read_text(encoding="utf-8").replace(again.recorded, recorded)
    assert applied == text
    plain, int8 = again.rows
    assert (plain.recorded, plain.processes) == (old.recorded, old.rows[0].processes)
    assert [process.tok_s for process in int8.processes or ()] == [
        *(101.0, 102.0, 103.0, 104.0, 105.0)
    ]
    with pytest.raises(CalledProcessError):
        git(project.path, "apply", str(patch))


def test_rows_of_a_device_without_a_baseline_make_a_new_file(project: Project) -> None:
    ids = stand_in(project, breaks=(3, INT8))
    (path,) = (project.path / "baselines").glob("*/baseline.json")
    path.unlink()
    patch = committed(project)
    words = ("--compare", "--on-missing-baseline=report", "--baseline-patch")
    output, _ = project.cli(*project.run_words(*words, str(patch)))
    assert ids == [PLAIN, INT8] * 3 + [PLAIN] * 2
    broken = f"left out: {INT8} is INVALID in process 3 of 5: out of memory\n"
    assert f"baseline-patch: {broken}" in output
    assert f"baseline-patch: {patch} has 1 row (1 NO_BASELINE);\n" in output
    assert patch.read_text("utf-8").count("new file mode 100644") == 1
    git(project.path, "apply", str(patch))
    (row,) = baselines.read(path).rows
    assert (row.id, len(row.processes or ())) == (PLAIN, 5)


def test_a_run_with_nothing_to_offer_leaves_no_patch(project: Project) -> None:
    ids = stand_in(project)
    patch = committed(project)
    patch.write_text("diff --git a/old b/old\n", encoding="utf-8")
    words = (*OPTIONS, "--row", PLAIN, "--row", FP6, "--baseline-patch", str(patch))
    output, _ = project.cli(*project.run_words(*words))
    assert "\nbaseline-patch: no row is FASTER, SMALLER or new\n" in output
    assert not patch.exists()
    assert ids == []


def test_an_interrupted_run_says_that_there_is_no_patch(project: Project) -> None:
    def process(_number: int, _row: RowSpec) -> WorkerResult:
        raise KeyboardInterrupt

    stand_in(project)
    project.stand_in(process)
    patch = committed(project)
    patch.write_text("diff --git a/old b/old\n", encoding="utf-8")
    words = (*OPTIONS, "--baseline-patch", str(patch))
    output, _ = project.cli(*project.run_words(*words), code=130)
    assert "baseline-patch: the run was ended before it, so there is none\n" in output
    assert project.verdicts()[INT8] is Verdict.FASTER
    assert not patch.exists()


def test_a_patch_that_the_disk_refuses_is_the_last_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(project)
    patch = committed(project)
    words = (*OPTIONS, "--baseline-patch", str(patch))
    refused = "baseline-patch: no patch: git found no difference"
    monkeypatch.setattr(baseline_patch, "_DIFF", ("diff", "--no-such-option"))
    _, errors = project.cli(*project.run_words(*words), code=2)
    assert f"llama-perf: error: {refused}" in errors
    result = project.run(*words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {refused}" in result.stdout.str()


def test_a_row_with_a_disturbed_process_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    busy = measured(neighbours=("other (12)",))
    processes = [measured(), busy, *[measured(OTHER)] * 2]
    environments = Mock(return_value=(ENVIRONMENT, processes))
    monkeypatch.setattr(baseline_patch, "in_fresh_processes", environments)
    results = (measured(), measured(OTHER))
    comparisons = tuple(compare(result, None) for result in results)
    patch = tmp_path / "a.patch"
    request = RunRequest(compare=True, baselines=tmp_path, baseline_patch=patch)
    report = report_of(*results, comparisons=comparisons)
    offer = baseline_patch.offer(report, request, quiet())
    said = "a process was disturbed: other processes on the GPU: other (12)"
    assert offer.lines[0] == f"baseline-patch: left out: {CPU_ROW.id}: {said}"
    git(tmp_path, "apply", str(patch))
    (path,) = tmp_path.glob("*/baseline.json")
    assert [row.id for row in baselines.read(path).rows] == [OTHER.id]


def test_disturbed_and_slowed_rows_are_left_out_and_named() -> None:
    slowed = measured(CPU_ROW, injected_slowdown=0.25)
    busy = measured(replace(CPU_ROW, batch_size=2), neighbours=("other (12)",))
    comparisons = tuple(
        replace(compare(result, None), verdict=Verdict.NO_BASELINE)
        for result in (slowed, busy)
    )
    report = report_of(slowed, busy, comparisons=comparisons)
    request = RunRequest(compare=True, baseline_patch=Path("none.patch"))
    offer = baseline_patch.offer(report, request, quiet())
    assert offer.lines[:2] == [
        f"baseline-patch: left out: {slowed.id}: it ran with an injected slowdown",
        f"baseline-patch: left out: {busy.id}: other processes on the GPU: other (12)",
    ]
    assert offer.lines[2:] == ["baseline-patch: no other row is FASTER, SMALLER or new"]
    assert not offer.problems


def test_the_names_of_folders_are_quoted_as_git_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my bäse\tlines"
    path = stored_in(folder, baseline_of(measured()))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "config", "diff.noprefix", "true")
    git(tmp_path, "config", "color.ui", "always")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    # A baseline that was edited by hand may lack its last line break.
    path.write_text(path.read_text("utf-8").removesuffix("\n"), encoding="utf-8")
    environments = Mock(return_value=(ENVIRONMENT, [measured(tok_s=200.0)] * 5))
    monkeypatch.setattr(baseline_patch, "in_fresh_processes", environments)
    faster = measured(tok_s=200.0)
    verdict = replace(compare(faster, None), verdict=Verdict.FASTER)
    patch = tmp_path / "a.patch"
    request = RunRequest(compare=True, baselines=folder, baseline_patch=patch)
    report = report_of(faster, comparisons=(verdict,))
    assert not baseline_patch.offer(report, request, quiet()).problems
    git(tmp_path, "apply", str(patch))
    (row,) = baselines.read(path).rows
    assert row.measurement.tok_s == 200.0


def test_what_cannot_become_a_patch_is_refused_before_anything_runs(
    project: Project, tmp_path: Path
) -> None:
    patch = committed(project)
    words = ("--baseline-patch", str(patch))
    text = project.cli.refusal(*project.run_words(*words))
    assert text == (
        "baseline-patch: it belongs to a comparison with the baseline: add --compare"
    )
    assert text in project.refusal(*words)
    missing = str(tmp_path / "no" / "a.patch")
    text = project.cli.refusal(
        *project.run_words("--compare", "--baseline-patch", missing)
    )
    assert (
        text == f"baseline-patch: {missing!r} is not allowed; its folder does not exist"
    )
    patch.write_text("kept\n", encoding="utf-8")
    text = project.cli.refusal(*project.run_words("--compare", *words))
    assert text.endswith("; it is there and is no patch of git")
    assert patch.read_text(encoding="utf-8") == "kept\n"
    patch.unlink()
    named = str(project.record())
    text = project.refusal(f"--benchmark-compare={named}", *words)
    assert "baseline-patch: it changes this device's baseline, and the compar" in text
    request = RunRequest(compare=True, baselines=tmp_path, baseline_patch=patch)
    with pytest.raises(SpecError, match="are in no checkout of git, so no patch can"):
        baseline_patch.check(request, is_named=False)
