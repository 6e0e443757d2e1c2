"""The commit that made a row slower, in a small repository with times made up."""

from pathlib import Path

import pytest

from llama_perf.errors import UserError
from llama_perf.run.bisection import Mark, Marked, bisect
from tests.correctness.support.git_commands import git
from tests.correctness.support.record_samples import measured, report_of

COMMITS = 12
SLOW_FROM = 8
REPORT = report_of(measured())


@pytest.fixture
def commits(tmp_path: Path) -> list[str]:
    """A line of commits."""
    git(tmp_path, "init", "-q")
    names = []
    for number in range(COMMITS):
        (tmp_path / "file").write_text(str(number), encoding="utf-8")
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "-q", "-m", f"number {number}")
        names.append(git(tmp_path, "rev-parse", "HEAD").strip())
    return names


class Question:
    """A bisection, what it decided and what it said."""

    def __init__(self, root: Path, commits: list[str]) -> None:
        self.root, self.commits = root, commits
        self.asked: list[int] = []
        self.said: list[str] = []
        self.broken: set[int] = set()
        self.interrupt_after = 100
        self.state = root / ".state" / "one.json"

    def decide(self, commit: str) -> Marked:
        if len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        number = self.commits.index(commit)
        self.asked.append(number)
        if number in self.broken:
            return Marked(mark=Mark.SKIP, reason="it does not run", report=REPORT)
        mark = Mark.BAD if number >= SLOW_FROM else Mark.GOOD
        return Marked(mark=mark, reason=f"number {number}", report=REPORT)

    def answer(self, good: int = 0, bad: int = COMMITS - 1) -> list[int]:
        found, _ = bisect(
            self.commits[good],
            self.commits[bad],
            decide=self.decide,
            state=self.state,
            note=self.said.append,
            root=self.root,
        )
        return sorted(map(self.commits.index, found))


@pytest.fixture
def question(tmp_path: Path, commits: list[str]) -> Question:
    return Question(tmp_path, commits)


def test_the_first_bad_commit_is_found_in_gits_words(question: Question) -> None:
    assert question.answer() == [SLOW_FROM]
    # The bad one, and a half each time.
    assert len(question.asked) <= 5
    said = "\n".join(question.said)
    assert "revisions left to test after this (roughly 3 steps)" in said
    assert f"{question.commits[SLOW_FROM]} is the first bad commit" in said
    assert f"{question.commits[-1][:12]} is bad: number 11" in said
    assert git(question.root, "worktree", "list").count("\n") == 1
    # The user's own state of git stays as it is.
    assert git(question.root, "status", "--porcelain", "-uno") == ""
    assert git(question.root, "for-each-ref", "refs/bisect") == ""


def test_what_was_found_is_answered_again_at_once(question: Question) -> None:
    assert question.answer() == [SLOW_FROM]
    asked = [*question.asked]
    assert question.answer() == [SLOW_FROM]
    assert question.asked == asked
    count = f"{len(asked)} commits"
    assert f"decided before: {count}; to decide anew, delete {question.state}" in (
        question.said
    )
    question.state.unlink()
    question.answer()
    assert question.asked == 2 * asked


def test_an_interrupt_loses_nothing(question: Question) -> None:
    question.interrupt_after = 2
    with pytest.raises(KeyboardInterrupt):
        question.answer()
    before = list(question.asked)
    question.interrupt_after = 100
    assert question.answer() == [SLOW_FROM]
    assert len(question.asked) == len(set(question.asked)) <= 5
    assert question.asked[:2] == before
    assert any(text.startswith("decided before: 2 commits;") for text in question.said)


@pytest.mark.parametrize(
    ("broken", "found"),
    [({5, 6}, [SLOW_FROM]), ({6, 7}, [6, 7, SLOW_FROM]), ({SLOW_FROM}, [SLOW_FROM, 9])],
)
def test_commits_that_do_not_run_are_skipped_and_named(
    question: Question, broken: set[int], found: list[int]
) -> None:
    question.broken = broken
    assert question.answer() == found
    for number in broken & set(question.asked):
        text = f"{question.commits[number][:12]} is skipped: it does not run"
        assert text in question.said


def test_a_bad_commit_that_is_not_slower_is_refused(question: Question) -> None:
    with pytest.raises(UserError, match=r"bad: [0-9a-f]{12} is not slower than") as no:
        question.answer(bad=SLOW_FROM - 1)
    assert str(no.value).endswith(": number 7")
    assert not question.state.exists()


def test_gits_own_refusals_are_said(question: Question) -> None:
    with pytest.raises(UserError, match="bisect: git: "):
        question.answer(good=COMMITS - 1, bad=0)


@pytest.mark.parametrize("problem", ["damaged", "a folder", "no folder"])
def test_a_file_of_decisions_that_cannot_be_used_stops_nothing(
    problem: str, tmp_path: Path, commits: list[str]
) -> None:
    question = Question(tmp_path, commits)
    if problem == "no folder":
        question.state = tmp_path / "file" / "one.json"
    elif problem == "a folder":
        (question.state / "folder").mkdir(parents=True)
    else:
        question.state.parent.mkdir()
        question.state.write_text("{", encoding="utf-8")
    assert question.answer() == [SLOW_FROM]
    about = [line for line in question.said if str(question.state) in line]
    wordings = {
        "damaged": ["every commit is decided anew"],
        "a folder": ["every commit is decided anew", "would start over"],
        "no folder": ["would start over"],
    }
    for line, words in zip(about, wordings[problem], strict=True):
        assert line.endswith(words)
