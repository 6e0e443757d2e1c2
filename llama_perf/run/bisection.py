"""Finds the commit that made a row slower: `git bisect`, decided by resident pairs.

Each commit is compared with the good one. What was decided is kept in a file, so that
the same command goes on after an interrupt, and answers again at once. Knows git's
words, and not how a row is measured.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from llama_perf.errors import RecordError, UserError, WriteError
from llama_perf.files import is_absent, write_atomically
from llama_perf.results.run import Report
from llama_perf.run.revision import checked_out, run_git
from llama_perf.strict_json import read_json, record, to_json
from llama_perf.words import counted


class Mark(Enum):
    """`git bisect`'s word for a commit."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


_WORDS = {Mark.GOOD: "good", Mark.BAD: "bad", Mark.SKIP: "skipped"}


@record
class Marked:
    """The word for a commit, the reason in words, and its row beside the good one's."""

    mark: Mark
    reason: str
    report: Report


@record
class Bisection:
    """The commits that were decided so far."""

    marked: dict[str, Marked]


Decide = Callable[[str], Marked]


def bisect(
    good: str,
    bad: str,
    *,
    decide: Decide,
    state: Path,
    note: Callable[[str], None],
    root: Path,
) -> tuple[Sequence[str], Mapping[str, Marked]]:
    """The first bad commit, or several where skipped ones hide it; all decisions.

    `good` and `bad` are commits of the repository `root`. `decide` compares a commit
    with the good one. `state` is the file with what was decided, which stays: the same
    question is answered from it again; a file that cannot be used is named by a note,
    and nothing else depends on it. Raises UserError where the bad commit is not bad,
    which is forgotten, or where git refuses the two.
    """
    known = _decided_before(state, note)
    unwritten: list[str] = []

    def mark(commit: str) -> Marked:
        if commit not in known.marked:
            known.marked[commit] = decide(commit)
            try:
                write_atomically(state, to_json(known))
            except WriteError as error:
                if not unwritten:
                    note(f"{error}; an interrupted bisection would start over")
                unwritten.append(commit)
        marked = known.marked[commit]
        note(f"{commit[:12]} is {_WORDS[marked.mark]}: {marked.reason}")
        return marked

    with checked_out(bad, root=root) as folder:
        said = _git(folder, "bisect", "start", "--no-checkout", bad, good)
        note(f"comparing the bad commit with the good one, {good[:12]}")
        if (ended := mark(bad)).mark is not Mark.BAD:
            _forget(state)
            raise UserError(
                f"bad: {bad[:12]} is not slower than {good[:12]}: {ended.reason}"
            )
        while not (found := _FOUND.findall(said)):
            note(said.strip())
            commit = _git(folder, "rev-parse", "BISECT_HEAD").strip()
            said = _git(folder, "bisect", mark(commit).mark.value, commit)
    note(said.strip())
    return found, known.marked


def _decided_before(state: Path, note: Callable[[str], None]) -> Bisection:
    if is_absent(state):
        return Bisection(marked={})
    try:
        known = read_json(Bisection, state)
    except RecordError as error:
        note(f"{error}; every commit is decided anew")
        return Bisection(marked={})
    count = counted(len(known.marked), "commit")
    note(f"decided before: {count}; to decide anew, delete {state}")
    return known


def _forget(state: Path) -> None:
    with suppress(OSError):
        state.unlink()


# The second is a line of the list where only skipped commits are left.
_FOUND = re.compile(r"^[0-9a-f]+(?= is the first bad commit$|$)", re.MULTILINE)


def _git(folder: Path, *arguments: str) -> str:
    done = run_git(folder, *arguments)
    # With code 2 git says which commits are left.
    if done.returncode not in {0, 2}:
        raise UserError(f"bisect: git: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr
