"""Another revision of this checkout, in a temporary folder.

Knows git, and nothing of the files in the revision.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_perf.errors import UserError
from llama_perf.files import CHECKOUT
from llama_perf.run.interrupts import shielded


def resolve(revision: str, *, root: Path = CHECKOUT, field: str = "base") -> str:
    """The commit that `revision` names; raises UserError, naming `field`, for none."""
    # A name that looks like an option of git must not be taken as one.
    options = ("--verify", "--end-of-options")
    done = run_git(root, "rev-parse", *options, f"{revision}^{{commit}}")
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2].removeprefix("fatal: ")
        raise UserError(f"{field}: {revision!r} names no commit of {root}: {reason}")
    return done.stdout.split()[-1]


def file_at(commit: str, path: str, *, root: Path) -> str | None:
    """A file's text in a commit; None where the commit lacks it.

    `path` is one of the repository that the folder `root` lies in, or, if it begins
    with "./", of that folder.
    """
    done = run_git(root, "show", f"{commit}:{path}")
    return done.stdout if done.returncode == 0 else None


def commits_between(old: str, new: str, *, root: Path = CHECKOUT) -> list[str] | None:
    """The commits after `old` up to `new`, the newest first, each as one line.

    None where the checkout lacks one of them, or there is no git.
    """
    try:
        ends = [resolve(commit, root=root) for commit in (old, new)]
    except UserError:
        return None
    done = run_git(root, "log", "--oneline", "..".join(ends))
    return done.stdout.splitlines() if done.returncode == 0 else None


@contextmanager
def checked_out(commit: str, *, root: Path = CHECKOUT) -> Iterator[Path]:
    """Give a folder with the files of `commit`, which is deleted afterwards.

    An interrupt waits for git, whose entry of the folder would otherwise stay.
    """
    temporary = tempfile.TemporaryDirectory(prefix="llama-perf-base-")
    folder = Path(temporary.name) / "checkout"
    try:
        with shielded():
            added = run_git(root, "worktree", "add", "--detach", str(folder), commit)
        if added.returncode != 0:
            reason = added.stderr.strip().rpartition("\n")[2]
            raise UserError(f"base: {commit}: {reason}")
        yield folder
    finally:
        with shielded():
            run_git(root, "worktree", "remove", "--force", str(folder))
            temporary.cleanup()


def run_git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a folder; raises UserError where it is not installed."""
    command = ["git", "-C", str(root), *arguments]
    try:
        # Ctrl-C in the terminal does not reach another session.
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            # In a file of JSON it is no longer a character.
            errors="backslashreplace",
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UserError("base: git is not installed") from None
    except OSError as error:
        raise UserError(f"base: git cannot be run: {error.strerror}") from None
