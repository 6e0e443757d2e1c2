"""Files and folders of the user's: read, made, and written at once.

What the disk refuses is a user's mistake in one line, never an OSError.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
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
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(caches) if caches else Path.home() / ".cache"
    except RuntimeError:
        reason = "this user has no home folder; set LLAMA_PERF_CACHE to a folder"
        raise SpecError("HOME", os.environ.get("HOME"), reason) from None
    return folder.absolute() / "llama-perf"


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


def is_missing(path: Path) -> bool:
    """Whether nothing is at `path`, or a link there leads nowhere."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
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
        reason = _reason(problem)
    except MemoryError:
        reason = "it does not fit in memory"
    raise error(f"{path}: cannot be read: {reason}")


def check_readable(path: Path, *, error: type[UserError]) -> None:
    """Raise `error` unless a library that opens `path` itself can read it."""
    read_bytes(path, error=error, most=0)


def _reason(problem: OSError | ValueError) -> str:
    """Why a path cannot be used; a null character in one is a ValueError."""
    return getattr(problem, "strerror", None) or str(problem)


def read_text(path: Path, *, error: type[UserError]) -> str:
    """The text of a UTF-8 file; raises `error` as `read_bytes` does."""
    try:
        return read_bytes(path, error=error).decode()
    except UnicodeDecodeError:
        raise error(f"{path}: cannot be read: it is not UTF-8 text") from None


def read_prose(path: Path, *, error: type[UserError]) -> str:
    """As `read_text`, and also raises `error` for what no person reads as a text."""
    text = read_text(path, error=error)
    if not text.strip():
        raise error(f"{path}: cannot be read: there is no text in it")
    if "\0" in text:
        raise error(f"{path}: cannot be read: it has zero bytes, so it is no text")
    return text


def entries(folder: Path, *, error: type[UserError]) -> list[Path]:
    """What is in a folder, sorted; raises `error` that names it and the reason."""
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as problem:
        raise error(f"{folder}: cannot be read: {_reason(problem)}") from None


def make_folder(field: str, folder: Path) -> None:
    """Make a folder and those it lies in; raises SpecError that names `field`.

    `field` is the option, or the variable of the environment, that names the folder.
    """
    with refused(field, folder, "it cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def refused(field: str, path: Path, problem: str) -> Iterator[None]:
    """Raise SpecError that names `field` and `path` where the system refuses `path`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise SpecError(field, str(path), f"{problem}: {_reason(error)}") from None


@cache
def process_folder() -> Path:
    """A temporary folder of this process, which removes it when it ends."""
    _temporary.append(tempfile.TemporaryDirectory(prefix="llama-perf-"))
    return Path(_temporary[-1].name)


# The object removes its folder.
_temporary: list[tempfile.TemporaryDirectory[str]] = []


def check_temporary_folder() -> None:
    """Raise SpecError unless there is a folder for temporary files."""
    try:
        tempfile.gettempdir()
    except OSError:
        reason = "no folder for temporary files can be written; give one that can"
        raise SpecError("TMPDIR", os.environ.get("TMPDIR"), reason) from None


def check_readable_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless `folder` is there and can be listed."""
    with refused(field, folder, "it cannot be listed"):
        os.scandir(folder).close()


def check_writable(field: str, path: Path) -> None:
    """Raise SpecError unless a file can be written at `path`, in an existing folder."""
    with refused(field, path, _UNREACHABLE):
        if not path.absolute().parent.is_dir():
            raise SpecError(field, str(path), "its folder does not exist")
    check_writable_anew(field, path)


def check_writable_anew(field: str, path: Path) -> None:
    """Raise SpecError unless a file can be written there once its folder is made.

    A device or a pipe is refused: a file would take its place.
    """
    with refused(field, path, _UNREACHABLE):
        if path.is_dir():
            raise SpecError(field, str(path), "it is a folder; give a file")
        if path.exists() and not path.is_file():
            raise SpecError(field, str(path), "it is no regular file")
        _try_to_write(field, path, path.absolute().parent)


_UNREACHABLE = "it cannot be reached"


def check_apart(
    outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[tuple[str, Path]] = ()
) -> None:
    """Raise SpecError where a command would write a file twice, or one that it reads.

    `outputs` have the name of the option that names each file, `inputs` say in words
    what each is.
    """
    used = {_place(path): words for words, path in inputs}
    for name, path in outputs:
        if path is None:
            continue
        place, own = _place(path), f"the file of --{name}"
        if (other := used.get(place)) is not None:
            words = "it is named twice" if other == own else f"it is also {other}"
            raise SpecError(name, str(path), f"{words}; allowed: a file of its own")
        used[place] = own


def _place(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        # Whoever uses it gets the reason why it cannot be.
        return str(path)


def check_appendable(field: str, path: Path) -> None:
    """Raise SpecError unless the file at `path` takes more, if there is one."""
    with refused(field, path, "it cannot be written"):
        if path.exists():
            path.open("ab").close()


def check_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless files can be written in `folder` once it is made."""
    with refused(field, folder, _UNREACHABLE):
        _try_to_write(field, folder, folder.absolute())


def check_new_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless `folder` can be made; it may exist if it is empty."""
    with refused(field, folder, _UNREACHABLE):
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
    existing = _existing_folder(folder)
    try:
        # Permissions do not show a full or read-only disk, nor do they stop root. A
        # full disk takes an empty file.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(_BLOCK))
            file.flush()
            return None
    except (OSError, ValueError) as error:
        return f"{existing} cannot be written: {_reason(error)}"


_BLOCK = 1 << 13
MIN_FREE_BYTES = 10**9
"""Room that is needed to keep compiled code: compilers break where a disk gets full."""


def why_not_kept(folder: Path) -> str | None:
    """Why compiled code is not kept in an absolute `folder`; None where it is."""
    if (problem := why_unwritable(folder)) is not None:
        return problem
    existing = _existing_folder(folder)
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        least_gb = MIN_FREE_BYTES / 1e9
        return f"{existing}: {free / 1e9:.1f} GB free, less than {least_gb:g}"
    return None


def _existing_folder(folder: Path) -> Path:
    """The first of an absolute `folder` and its parents that is there.

    A broken link is: nothing can be made in its place.
    """
    return next(place for place in (folder, *folder.parents) if not is_absent(place))


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the new one.

    Raises WriteError, which names the file, and leaves the old one as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A prefix of the file's name could make this one too long.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
            made = Path(folder) / path.name
            with made.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            made.chmod(0o644)
            made.replace(path)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which is made if it is absent; raises WriteError."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise WriteError that names `path` where the block, which writes it, cannot."""
    try:
        yield
    except (OSError, ValueError) as problem:
        raise WriteError(f"{path}: cannot be written: {_reason(problem)}") from None
