"""Compiled code that later runs use again: inductor's and Triton's, in one folder.

An entry is a folder of its own for each `key`: all that compiled code depends on.
Inductor builds C++ with -march=native and names the result after its source and flags:
another processor would find it, and could not run it. Knows no rows.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from llama_perf import files

MAX_BYTES = 2 * 10**9
"""What all entries take together; those that were used longest ago are removed."""

_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
# In each entry; its time is that of the entry's last use.
_KEY = "key"
_LOCK = "lock"


def code_folder() -> Path:
    """The folder of all entries."""
    return files.cache_folder() / "compiled"


def why_not_kept() -> str | None:
    """Why compiled code is not kept for later runs; None where it is."""
    folder = code_folder()
    if (problem := files.why_not_kept(folder)) is not None:
        return problem
    try:
        with suppress(FileNotFoundError), _locked(folder, fcntl.LOCK_UN):
            pass
    except OSError as error:
        return f"{folder / _LOCK}: cannot be locked: {error.strerror}"
    return None


@contextmanager
def kept_code(key: str) -> Iterator[None]:
    """Have the compilers keep their code in the entry of `key`, and find it there.

    A folder that a compiler's own variable names is left alone. Where nothing can be
    kept, the code lies in a temporary folder until this process ends.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Inductor sets its variable to its default when it is imported.
    unnamed = {None, os.path.abspath(default_cache_dir())}
    before = {name: os.environ.get(name) for name in _FOLDERS}
    ours = {name: value for name, value in before.items() if value in unnamed}
    if not ours:
        yield
        return
    with ExitStack() as stack:
        entry = _entry(key)
        try:
            stack.enter_context(_used(entry, key))
        except OSError:
            # The disk got full since, or what lies there is no entry.
            entry = _temporary_entry()
            stack.enter_context(_used(entry, key))
        for name in ours:
            os.environ[name] = str(entry / _FOLDERS[name])
        try:
            yield
        finally:
            for name, value in ours.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@cache
def _entry(key: str) -> Path:
    """The folder for `key`; where it is to be kept, older ones make room first."""
    if why_not_kept() is None:
        make_room()
        entry = code_folder() / hashlib.sha256(key.encode()).hexdigest()[:16]
        if entry.is_dir() and not (entry / _KEY).is_dir():
            return entry
        # Whatever else is in its place is removed.
        with suppress(OSError):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        return entry
    return _temporary_entry()


def _temporary_entry() -> Path:
    """A folder for compiled code that is not kept."""
    return files.process_folder() / "entry"


def make_room() -> None:
    """Remove the entries that exceed MAX_BYTES, unless a run compiles now."""
    # Another run may remove the same.
    with suppress(OSError), _locked(code_folder(), fcntl.LOCK_EX | fcntl.LOCK_NB):
        sizes = entries()
        excess = sum(sizes.values()) - MAX_BYTES
        for entry, size in sizes.items():
            if excess > 0:
                shutil.rmtree(entry)
                excess -= size


def entries() -> dict[Path, int]:
    """Each entry and its bytes, the one that was used longest ago first."""
    used: dict[Path, float] = {}
    for key in code_folder().glob(f"*/{_KEY}"):
        # Another run may remove it, and another user's cannot be looked at.
        with suppress(OSError):
            used[key.parent] = key.stat().st_mtime
    return {entry: _bytes_in(entry) for entry in sorted(used, key=used.__getitem__)}


def _bytes_in(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


@contextmanager
def _used(entry: Path, key: str) -> Iterator[None]:
    """Keep an entry in place while its code is used; may raise OSError."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(entry.parent, fcntl.LOCK_SH):
        # Another run may have removed it since this process used it last.
        entry.mkdir(exist_ok=True)
        (entry / _KEY).write_text(f"{key}\n", encoding="utf-8")
        yield


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold the folder's lock, shared by those that compile; may raise OSError."""
    with (folder / _LOCK).open("a", encoding="utf-8") as file:
        fcntl.flock(file, operation)
        yield
