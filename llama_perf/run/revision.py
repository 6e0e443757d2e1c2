"""Another revision of this checkout, in a folder of its own for as long as it is used.

Knows git, and nothing of what the revision holds.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_perf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def resolve(revision: str, *, root: Path = ROOT, field: str = "base") -> str:
    """The commit that `revision` names; raises UserError, by `field`, for none."""
    # A name that looks like an option must not be one.
    found = _git(
        root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}"
    )
    if found.returncode != 0:
        reason = _last_line(found.stderr)
        raise UserError(f"{field}: {revision!r} names no commit of {root}: {reason}")
    return found.stdout.split()[-1]


def file_at(commit: str, path: Path) -> str | None:
    """A file's text in `commit` of the checkout it lies in; None where it has none."""
    folder = path.absolute().parent
    found = _git(folder, "show", f"{commit}:./{path.name}")
    return found.stdout if found.returncode == 0 else None


@contextmanager
def checked_out(commit: str, *, root: Path = ROOT) -> Iterator[Path]:
    """A folder with `commit`, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="llama-perf-base-") as name:
        folder = Path(name) / "checkout"
        added = _git(root, "worktree", "add", "--detach", str(folder), commit)
        if added.returncode != 0:
            raise UserError(f"base: {commit}: {_last_line(added.stderr)}")
        try:
            yield folder
        finally:
            _git(root, "worktree", "remove", "--force", str(folder))


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("base: git is not installed") from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["git gave no reason"])[-1]
