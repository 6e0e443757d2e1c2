"""Files that are written: whether they can be, asked before a run, and at once."""

import os
import tempfile
from pathlib import Path

from llama_perf.errors import SpecError

CHECKOUT = Path(__file__).resolve().parents[1]
"""The folder that `llama_perf` lies in: a checkout of this project, or not."""


def is_checkout() -> bool:
    """Whether `llama_perf` lies in a checkout of this project."""
    return (CHECKOUT / "pyproject.toml").is_file()


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
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        # Permissions do not show a full or read-only disk, nor do they stop root.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise SpecError(
            field, str(path), f"{existing} cannot be written: {error.strerror}"
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
        made = Path(folder) / path.name
        with made.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        made.chmod(0o644)
        made.replace(path)
