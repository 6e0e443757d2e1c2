"""What `llama-perf diff` is given: files, stdin, files and baselines of revisions.

Knows git and the files, and nothing of how they are compared.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_perf.errors import RecordError, UserError
from llama_perf.files import is_absent
from llama_perf.results import baselines, recording
from llama_perf.results.recording import Recording
from llama_perf.run.revision import file_at, resolve
from llama_perf.words import shown

STDIN = "-"
# A date in braces may have colons: `main@{10:00}:baselines/...`.
_OF_REVISION = re.compile(r"((?:\{[^}]*\}|[^:])+):(.*)")


def read_all(
    names: Sequence[str], *, folder: Path, device: str | None = None
) -> list[Recording]:
    """Read what each of `names` names; raises UserError for a wrong one.

    `REV:PATH` is a file of a revision, in the repository that `folder`, that of the
    baselines, lies in. `REV:` is its baseline of `device`. Without that it is of the
    device that the first name with another meaning has, or else of the only one in
    `folder`.
    """
    if names.count(STDIN) > 1:
        raise UserError(f"diff: {STDIN!r} is there twice; stdin can be read once")
    folder = folder.resolve()
    read: dict[str, Recording] = {}
    commits: dict[str, str] = {}
    for name in names:
        match = _OF_REVISION.fullmatch(name)
        if name == STDIN:
            read[name] = recording.parse(sys.stdin.read(), source="stdin")
        elif match is None or not is_absent(Path(name)):
            read[name] = _of_file(name, folder.parent)
        else:
            commit = resolve(match[1], root=folder.parent, field="diff")
            if match[2]:
                read[name] = _of_commit(name, folder.parent, commit, match[2])
            else:
                commits[name] = commit
    if commits and device is None:
        known = (one.measured.environment.device_key for one in read.values())
        device = next(known, None) or _only_key(folder)
    for name, commit in commits.items():
        path = f"./{folder.name}/{device}/{baselines.FILE_NAME}"
        read[name] = _of_commit(name, folder.parent, commit, path, device=device)
    return [read[name] for name in names]


def _of_file(name: str, root: Path) -> Recording:
    if is_absent(Path(name)) and _is_revision(name, root):
        raise RecordError(
            f"{name}: no such file; the baseline of that revision is written as {name}:"
        )
    return recording.read(Path(name))


def _is_revision(name: str, root: Path) -> bool:
    try:
        resolve(name, root=root)
    except UserError:
        return False
    return True


def _of_commit(
    name: str, root: Path, commit: str, path: str, *, device: str | None = None
) -> Recording:
    text = file_at(commit, path, root=root)
    if text is None:
        what = f"no file {path}" if device is None else f"no baseline of {device}"
        raise RecordError(f"{shown(name)}: commit {commit[:12]} has {what}")
    return recording.parse(text, source=name)


def _only_key(folder: Path) -> str:
    """The device of the only baseline in a folder; the published table is none."""
    keys = baselines.keys(folder)
    own = [key for key in keys if key != baselines.REFERENCE_KEY]
    if len(own) != 1:
        found = ", ".join(own) or "none"
        raise UserError(
            f"device: name one by --device KEY; {folder} has the baselines of: {found}"
        )
    return own[0]
