"""Rows in fresh processes: confirmed, and recorded."""

from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.errors import UserError
from llama_perf.report.text import as_text
from llama_perf.results import baselines
from llama_perf.results.measurement import SystemLoad
from llama_perf.results.run import Status, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run.fresh_processes import default_processes
from llama_perf.run.revision import checked_out, resolve
from llama_perf.run.worker_protocol import WorkerResult
from tests.correctness.support.git_commands import git
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    CPU_ROW,
    CUDA_ROW,
    measured,
    unmeasured,
)

pytest_plugins = ["pytester"]


def broken(row: RowSpec) -> WorkerResult:
    result = unmeasured(Status.INVALID, "its process was ended by signal 9: Oh", row)
    return WorkerResult(result=result, environment=None)


# The row and the unquantized one take turns at going first.
TURNS = [*[INT8, PLAIN, PLAIN, INT8] * 2, INT8, PLAIN]
SLOWER, UNDECIDED = Verdict.SLOWER, Verdict.UNDECIDED
OFF = (1.0, (0, ""), list[str](), UNDECIDED, "confirmation was off")
CASES: dict[str, tuple[str, float, tuple[int, str], list[str], Verdict, str]] = {
    # Options, the processes' tok/s, which one breaks, those started, what is decided.
    "slower": ("", 100.0, (0, ""), [PLAIN] * 5, SLOWER, "; confirmed by 5 fresh"),
    "quantized": ("", 100.0, (0, ""), TURNS, SLOWER, "by 5 fresh processes: 1.000 ("),
    "refuted": ("", 1e12, (0, ""), [PLAIN] * 5, Verdict.SAME, "; not confirmed by 5"),
    "broken": ("", 100.0, (3, PLAIN), [PLAIN] * 3, UNDECIDED, "signal 9"),
    "first broken": ("", 100.0, (1, INT8), [INT8, PLAIN], UNDECIDED, "signal 9"),
    "second broken": ("", 100.0, (1, PLAIN), [INT8, PLAIN], UNDECIDED, "signal 9"),
    "off": ("--no-confirm", *OFF),
    "reported": ("--no-confirm --on-undecided=report", *OFF),
}


@pytest.mark.parametrize("front", ["pytest", "command"])
@pytest.mark.parametrize("case", CASES)
def test_what_fresh_processes_decide(project: Project, case: str, front: str) -> None:
    options, tok_s, breaks, started, verdict, reason = CASES[case]
    slow = started[0] if started else PLAIN
    # Sizes with which the row is not SMALLER.
    project.record(slow=slow, model_size_bytes=80_512, peak_memory_bytes=10**7)

    def process(number: int, row: RowSpec) -> WorkerResult:
        # A row is saved before it is confirmed.
        assert project.verdicts()[slow] is Verdict.UNDECIDED
        assert project.report().selected == 3
        if (number, row.id) == breaks:
            return broken(row)
        return WorkerResult(result=measured(row, tok_s=tok_s), environment=None)

    ids, fails = project.stand_in(process), case not in ("refuted", "reported")
    if front == "pytest":
        result = project.run("--benchmark-compare", *options.split())
        assert result.ret == fails
        output = progress = result.stdout.str()
    else:
        words = project.run_words("--compare", *options.split())
        output, progress = project.cli(*words, code=fails)
    assert ids == started
    said = ": it may be slower; pairs or fresh processes decide\n"
    assert (said in progress) == bool(started)
    assert project.verdicts()[slow] is verdict
    assert project.verdicts()[FP6] is Verdict.NOT_RUN
    assert as_text(project.report()) in output
    assert "found 9 in 10" in output
    assert f"{verdict.value} {slow}: " in output or not fails
    assert reason in output
    assert "record one with" not in output


def test_a_cuda_baseline_has_ten_processes_and_another_five() -> None:
    assert default_processes([CPU_ROW]) == 5
    assert default_processes([CPU_ROW, CUDA_ROW]) == 10


ENDINGS = {
    "interrupted": "llama-perf: interrupted; nothing was recorded\n",
    "broken": f"error: baseline: {INT8} is INVALID in process 3 of 3: its process",
    "changed": "error: baseline: the environment changed between processes: torch",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_recording_that_ends_early(project: Project, ending: str) -> None:
    path = project.record()
    before = path.read_bytes()
    environment = baselines.read(path).environment

    def process(number: int, row: RowSpec) -> WorkerResult:
        refused = unmeasured(Status.NOT_RUN, "not built", row)
        result = refused if row.id == FP6 else measured(row)
        now = environment
        if (number, row.id) == (3, INT8):
            if ending == "interrupted":
                raise KeyboardInterrupt
            if ending == "broken":
                return broken(row)
            now = replace(environment, torch="1.0")
        return WorkerResult(result=result, environment=now)

    ids, interrupted = project.stand_in(process), ending == "interrupted"
    words = project.words("baseline", "record", "--processes", "3")
    words += ["--fresh"] * interrupted
    _, err = project.cli(*words, code=130 if interrupted else 2)
    assert ENDINGS[ending] in err
    # They take turns, and one that cannot run is tried once.
    assert ids == [PLAIN, INT8, FP6, *[PLAIN, INT8] * 2]
    assert project.compiled_anew == [True] * 3 + [False] * 4
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_recording_names_disturbed_processes_and_warns_of_large_noise(
    project: Project,
) -> None:
    speeds = (50.0, 80.0, 100.0, 140.0, 200.0)
    environment = baselines.read(project.record()).environment
    load = SystemLoad(seconds=1.0, cores=2, threads=2, other_cores=0.9)

    def process(number: int, row: RowSpec) -> WorkerResult:
        disturbed = load if (number, row.id) == (2, INT8) else None
        # Its ratio to the other row varies as much.
        tok_s = speeds[number - 1] ** (2 if row.id == INT8 else 1)
        result = measured(row, tok_s=tok_s, load=disturbed)
        if row.id == FP6:
            result = unmeasured(Status.NOT_RUN, "not built", row)
        return WorkerResult(result=result, environment=environment)

    project.stand_in(process)
    output, progress = project.cli(*project.words("baseline", "record"))
    assert progress.count("disturbed: other processes took 0.9 of 2 cores\n") == 1
    ended = [line for line in progress.splitlines() if "disturbed" in line]
    assert len(ended) == 2
    assert all("int8wo.torchao, process 2 of 5" in line for line in ended)
    assert "6400.00 tok/s  disturbed  " in ended[1]
    for row_id in (PLAIN, INT8):
        assert f"\nwarning: {row_id}: without pairs: limit " in output
    remedies = "a quieter machine, or with more tokens a generation (max_new_tokens)\n"
    assert f"{remedies}recorded 2 rows in " in output


def test_a_revision_is_checked_out_and_gone_afterwards(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for number in (1, 2):
        (tmp_path / "file").write_text(str(number), encoding="utf-8")
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "-q", "-m", str(number))
    commit = resolve("HEAD~1", root=tmp_path)
    with checked_out(commit, root=tmp_path) as folder:
        assert (folder / "file").read_text(encoding="utf-8") == "1"
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), checked_out(commit, root=tmp_path) as folder:
        raise KeyboardInterrupt
    assert not folder.exists()
    assert git(tmp_path, "worktree", "list").count("\n") == 1
    for wrong in ("no-such-branch", "--all", ""):
        with pytest.raises(UserError, match=f"base: '{wrong}' names no commit of"):
            resolve(wrong, root=tmp_path)
