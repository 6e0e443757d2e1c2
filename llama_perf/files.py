"""Whether results can be written where they are to go, asked before anything runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llama_perf.errors import SpecError


def check_writable(field: str, path: Path) -> None:
    """Raise SpecError unless a file can be written at `path`."""
    if not path.absolute().parent.is_dir():
        raise SpecError(field, str(path), "its folder does not exist")
    check_writable_anew(field, path)


def check_writable_anew(field: str, path: Path) -> None:
    """The same where missing folders on the way are made when the time comes."""
    if path.is_dir():
        raise SpecError(field, str(path), "it is a folder; give a file")
    _try(field, path, path.absolute().parent)


def check_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless files can be written in `folder`, made where missing."""
    _try(field, folder, folder.absolute())


def check_new_folder(field: str, folder: Path) -> None:
    """Raise SpecError unless `folder` can be made: nothing there, or an empty one."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise SpecError(field, str(folder), "it is there already and not empty")
    elif folder.exists():
        raise SpecError(field, str(folder), "it is a file; give a folder")
    if not folder.absolute().parent.is_dir():
        raise SpecError(field, str(folder), "the folder it lies in does not exist")
    _try(field, folder, folder.absolute().parent)


def _try(field: str, path: Path, folder: Path) -> None:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        # Permissions alone say nothing of a full or read-only disk, nor to root.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise SpecError(
            field, str(path), f"{there} cannot be written: {error.strerror}"
        ) from None
