"""Files and folders of the user's: read, made, and written at once.

What the disk refuses is a user's mistake in one line, never an OSError.
"""

import os
import stat
import tempfile
from pathlib import Path

from llama_perf.errors import SpecError, UserError, WriteError

CHECKOUT = Path(__file__).resolve().parents[1]
"""The folder that `llama_perf` lies in: a checkout of this project, or not."""


def is_checkout() -> bool:
    """Whether `llama_perf` lies in a checkout of this project."""
    return (CHECKOUT / "pyproject.toml").is_file()


def cache_folder() -> Path:
    """Where runs keep what later ones use again: compiled code, autoquant's times.

    `$LLAMA_PERF_CACHE`, else `.llama-perf/` of the checkout, else the user's cache.
    """
    if own := os.environ.get("LLAMA_PERF_CACHE"):
        return Path(own).absolute()
    if is_checkout():
        return CHECKOUT / ".llama-perf"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "llama-perf"


def is_absent(path: Path) -> bool:
    """Whether nothing is at `path`: not even a link that leads nowhere.

    A path that may not be looked at is not absent: whoever reads it gets the reason.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        # A null character in a path is a ValueError.
        return False
    return False


def read_bytes(path: Path, *, error: type[UserError], most: int | None = None) -> bytes:
    """The bytes of a file, `most` at most; raises `error` that names it and the reason.

    A folder, a pipe and a device are refused: reading a pipe may wait without end.
    """

    def without_waiting(name: str, flags: int) -> int:
        # Opening a pipe that nobody writes to would wait as well.
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode):
                return file.read(most)
        reason = "it is a pipe" if stat.S_ISFIFO(mode) else "it is no regular file"
    except (OSError, ValueError) as problem:
        # A null character in a path is a ValueError.
        reason = getattr(problem, "strerror", None) or str(problem)
    except MemoryError:
        reason = "it does not fit in memory"
    raise error(f"{path}: cannot be read: {reason}")


def check_readable(path: Path, *, error: type[UserError]) -> None:
    """Raise `error` unless a library that opens `path` itself can read it."""
    read_bytes(path, error=error, most=0)


def read_text(path: Path, *, error: type[UserError]) -> str:
    """The text of a UTF-8 file; raises `error` as `read_bytes` does."""
    try:
        return read_bytes(path, error=error).decode()
    except UnicodeDecodeError:
        raise error(f"{path}: cannot be read: it is not UTF-8 text") from None


def entries(folder: Path, *, error: type[UserError]) -> list[Path]:
    """What is in a folder, sorted; raises `error` that names it and the reason."""
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{folder}: cannot be read: {reason}") from None


def make_folder(field: str, folder: Path) -> None:
    """Make a folder and those it lies in; raises SpecError that names `field`.

    `field` is the option, or the variable of the environment, that names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise SpecError(field, str(folder), f"it cannot be made: {reason}") from None


def check_writable(field: str, path: Path) -> None:
    """Raise SpecError unless a file can be written at `path`, in an existing folder."""
    if not path.absolute().parent.is_dir():
        raise SpecError(field, str(path), "its folder does not exist")
    check_writable_anew(field, path)


def check_writable_anew(field: str, path: Path) -> None:
    """Raise SpecError unless a file can be written there once its folder is made."""
    if path.is_dir():
        raise SpecError(field, str(path), "it is a folder; give a file")
    _try_to_write(field, path, path.absolute().parent)


def check_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless files can be written in `folder` once it is made."""
    _try_to_write(field, folder, folder.absolute())


def check_new_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless `folder` can be made; it may exist if it is empty."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise SpecError(field, str(folder), "it is there already and not empty")
    elif folder.exists():
        raise SpecError(field, str(folder), "it is a file; give a folder")
    if not folder.absolute().parent.is_dir():
        raise SpecError(field, str(folder), "the folder it lies in does not exist")
    _try_to_write(field, folder, folder.absolute().parent)


def _try_to_write(field: str, path: Path, folder: Path) -> None:
    if (problem := why_unwritable(folder)) is not None:
        raise SpecError(field, str(path), problem)


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be written in an absolute `folder` once it is made, or None."""
    existing = existing_folder(folder)
    try:
        # Permissions do not show a full or read-only disk, nor do they stop root.
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing} cannot be written: {error.strerror}"


def existing_folder(folder: Path) -> Path:
    """The first of an absolute `folder` and its parents that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the new one.

    Raises WriteError, which names the file, and leaves the old one as it was.
    """
    prefix = f".{path.name}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
            made = Path(folder) / path.name
            with made.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            made.chmod(0o644)
            made.replace(path)
    except OSError as problem:
        raise WriteError(f"{path}: cannot be written: {problem.strerror}") from None
