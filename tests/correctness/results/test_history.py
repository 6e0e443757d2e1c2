"""A device's history: what is appended, what a merge and damage leave of it."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.errors import RecordError, WriteError
from llama_perf.files import CHECKOUT
from llama_perf.results import history
from llama_perf.results.run import Status, Verdict
from llama_perf.strict_json import to_line
from tests.correctness.support.git_commands import git
from tests.correctness.support.histories import KEY, lines, night, run, stored, written
from tests.correctness.support.record_samples import (
    CLOSENESS,
    CPU_ROW,
    INT8_CPU,
    OTHER,
    baseline_of,
    compare,
    measured,
    unmeasured,
)


def test_a_line_has_the_figures_of_a_measured_row() -> None:
    result = measured(tok_s=60.0, neighbours=("4242",))
    verdict = compare(result, baseline_of(measured()))
    report = replace(
        run(),
        results=(result, unmeasured(Status.NOT_RUN, "no memory", OTHER)),
        comparisons=(verdict,),
    )
    (line,) = history.lines_of(report)
    assert (line.id, line.fingerprint) == (CPU_ROW.id, CPU_ROW.fingerprint)
    assert (line.started, line.commit, line.torch) == (night(0), "0" * 12, "2.13.0")
    assert (line.tok_s, line.peak_memory_bytes, line.samples) == (60.0, 10**9, 2)
    assert line.verdict is verdict.verdict is Verdict.UNDECIDED
    assert line.disturbed == "other processes on the GPU: 4242"
    assert history.lines_of(run())[0].disturbed is None
    (line,) = history.lines_of(run(closeness=CLOSENESS))
    assert (line.text_closeness_db, line.kl_nats, line.perplexity) == (12.0, 0.3, 20.0)


def test_what_is_added_is_read_by_time_and_only_once(tmp_path: Path) -> None:
    path = history.path_of(tmp_path / "new" / "folder", KEY)
    first, second, third = lines([100.0, 101.0, 102.0])
    assert history.append(path, [third, first]) == [third, first]
    before = path.read_bytes()
    assert history.append(path, [first, second, third]) == [second]
    assert history.append(path, [first]) == []
    assert path.read_bytes() == before + f"{to_line(second)}\n".encode()
    assert history.read(path) == ([first, second, third], [])


def test_times_of_other_zones_are_compared_as_times(tmp_path: Path) -> None:
    one, other = lines([100.0, 101.0])
    late = replace(one, started="2026-05-01T02:17:00-12:00")
    early = replace(other, started="2026-05-01T02:17:00")
    path = stored(tmp_path, [late, early])
    assert history.read(path)[0] == [early, late]


def test_a_damaged_tail_does_not_swallow_the_next_line(tmp_path: Path) -> None:
    first, second = lines([100.0, 101.0])
    path = stored(tmp_path, [first])
    whole = path.read_text(encoding="utf-8")
    path.write_text(f"{whole}{whole[:60]}", encoding="utf-8")
    assert history.append(path, [second]) == [second]
    read, problems = history.read(path)
    assert read == [first, second]
    (problem,) = problems
    assert problem.startswith(f"{path}:2: Invalid JSON: EOF while parsing")


def changed(field: str, value: object) -> str:
    (line,) = lines([100.0])
    fields = json.loads(to_line(line))
    if value is None:
        del fields[field]
    else:
        fields[field] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not JSON", "Invalid JSON: expected ident at line 1 column 2"),
        ("<<<<<<< HEAD", "a mark of git around a conflict"),
        ("=======", "a mark of git around a conflict"),
        (">>>>>>> other", "a mark of git around a conflict"),
        (changed("schema_version", 2), "schema_version: 2 is not allowed; allowed: 1"),
        (changed("tok_s", None), "tok_s: the field is missing"),
        (changed("tok_s", -1), "tok_s: -1.0 is not allowed; allowed: more than 0"),
        (changed("tok_s", 1e300), "tok_s: 1e+300 is not allowed; allowed: 1e-09 to 1"),
        (changed("started", "May"), "started: 'May' is not allowed; allowed: a time"),
        (changed("added_later", 1), "added_later: unknown field"),
        (changed("kind", "llama-perf baseline"), "it is a baseline: `llama-perf diff "),
        ("[1]", "[1] is not allowed; allowed: an object"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(
    tmp_path: Path, text: str, words: str
) -> None:
    first, second = lines([100.0, 101.0])
    path = stored(tmp_path, [first])
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n{to_line(second)}\n")
    read, problems = history.read(path)
    assert read == [first, second]
    (problem,) = problems
    assert problem.startswith(f"{path}:3: {words}")
    path.write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(RecordError, match="no line of the file can be read"):
        history.read(path)


def test_a_slowed_row_is_refused_and_a_run_without_a_row_has_no_line(
    tmp_path: Path,
) -> None:
    slowed = run(injected_slowdown=0.25)
    path = written(tmp_path / "slowed.json", slowed)
    with pytest.raises(RecordError, match=r"slowed.json: .* injected slowdown"):
        history.read_run(Path(path))
    none = replace(run(), results=(unmeasured(Status.NOT_RUN, "no memory"),))
    path = written(tmp_path / "none.json", none)
    assert history.read_run(Path(path)) == (none, [])


@pytest.mark.parametrize("field", ["id", "commit", "torch", "weights", "disturbed"])
def test_a_line_that_would_steer_a_terminal_is_damaged(
    tmp_path: Path, field: str
) -> None:
    path = stored(tmp_path, lines([100.0]))
    document = json.loads(path.read_text(encoding="utf-8"))
    for text in ("\x1b[31mred", "two\nlines", "turned \u202e around"):
        path.write_text(json.dumps(document | {field: text}), encoding="utf-8")
        with pytest.raises(
            RecordError, match="allowed: characters that can be printed"
        ):
            history.read(path)


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lines([100.0, 101.0])
    path = stored(tmp_path, [first])
    before = path.read_bytes()
    write = os.write
    room = [100]

    def write_some(file: int, text: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, text[: room.pop()])

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(WriteError, match="cannot be written: No space left on device"):
        history.append(path, [second])
    assert path.read_bytes() == before


def test_rows_that_became_others_under_their_id_are_left_out() -> None:
    old = [replace(line, fingerprint="other") for line in lines([50.0, 50.0])]
    new = lines([100.0, 100.0, 100.0])[2:]
    assert history.by_row([*old, *new]) == {CPU_ROW.id: new}


WRITER = """
import sys
from pathlib import Path
from llama_perf.results import history
number = int(sys.argv[2])
from tests.correctness.support.histories import lines
for line in lines([100.0 + number] * 40):
    history.append(Path(sys.argv[1]), [line])
"""


def test_runs_that_add_at_once_interleave_no_lines(tmp_path: Path) -> None:
    path = history.path_of(tmp_path, KEY)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(one)], cwd=CHECKOUT)
        for one in range(2)
    ]
    assert [one.wait(timeout=60) for one in writers] == [0, 0]
    read, problems = history.read(path)
    assert (len(read), problems) == (80, [])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with this project's attributes and a history of one night."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    attributes = (CHECKOUT / ".gitattributes").read_text(encoding="utf-8")
    (tmp_path / ".gitattributes").write_text(attributes, encoding="utf-8")
    stored(tmp_path / "history", lines([100.0]))
    commit(tmp_path)
    return tmp_path


def commit(repository: Path) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "a night")


@pytest.mark.parametrize("ends", [True, False])
def test_two_branches_that_appended_merge_without_conflict(
    repository: Path, ends: bool
) -> None:
    path = history.path_of(repository / "history", KEY)
    first, ours, theirs, both, late = lines([100.0, 101.0, 102.0, 103.0, 104.0])
    git(repository, "checkout", "--quiet", "-b", "other")
    history.append(path, [theirs, both])
    if not ends:
        # Somebody's editor takes the last line break away.
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
    commit(repository)
    git(repository, "checkout", "--quiet", "main")
    history.append(path, [both, ours])
    commit(repository)
    git(repository, "merge", "--quiet", "--no-edit", "other")
    # Union keeps the line that both appended twice, and it counts once.
    text = path.read_text(encoding="utf-8")
    assert text.count(to_line(both)) == 2
    assert history.read(path) == ([first, ours, theirs, both], [])
    history.append(path, [late])
    assert history.read(path) == ([first, ours, theirs, both, late], [])


def test_devices_have_files_of_their_own(tmp_path: Path) -> None:
    (one,) = history.lines_of(run(0, INT8_CPU))
    history.append(history.path_of(tmp_path, "b.1"), [one])
    history.append(history.path_of(tmp_path, "a"), [one])
    (tmp_path / "notes.md").write_text("x", encoding="utf-8")
    assert history.keys(tmp_path) == ["a", "b.1"]
