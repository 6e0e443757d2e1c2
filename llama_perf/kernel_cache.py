"""Compiled Triton kernels as one file, which travels to a machine with a card.

Triton finds a kernel in its cache by the kernel's source, its target and Triton's own
files. So one that was compiled elsewhere is found there, where the wheel of Triton is
the same, and with it the Python. Of each only what is loaded travels: its binary and
its description. Standard library alone.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Of a kernel's files: what is loaded, and what says how it is launched.
_BINARY, _DESCRIPTION = ".cubin", ".json"
# Triton's list of a kernel's files, with where each of them lies.
_LIST = "__grp__"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiler:
    """What a kernel's key depends on: the versions of a wheel of Triton."""

    triton: str
    python: str

    @property
    def told(self) -> str:
        """In words."""
        return f"Triton {self.triton} and Python {self.python}"

    def archive(self, target: str) -> str:
        """The file's name, for a `target` such as sm_90."""
        return f"triton-{self.triton}-python-{self.python}-{target}.tar.xz"

    def archives(self, folder: Path) -> list[Path]:
        """Those in `folder`, whatever their target."""
        return sorted(folder.glob(self.archive("sm_*")))


def kernels(cache: Path) -> set[str]:
    """The keys of the kernels that a cache holds."""
    return {path.parent.name for path in cache.glob(f"*/*{_BINARY}")}


def pack(cache: Path, archive: Path) -> int:
    """Write what is loaded of a Triton cache to `archive`; the number of kernels."""
    keys = sorted(kernels(cache))
    with tarfile.open(archive, "w:xz") as out:
        for key in keys:
            for path in sorted((cache / key).iterdir()):
                if path.suffix in (_BINARY, _DESCRIPTION):
                    out.add(path, arcname=f"{key}/{path.name}")
    return len(keys)


def unpack(archive: Path, cache: Path) -> int:
    """Add the kernels of `archive` to a Triton cache; their number."""
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as file:
        file.extractall(cache, filter="data")
        lists = [name for name in file.getnames() if _LIST in name]
    for each in lists:
        _place(cache / each)
    return len(lists)


def _place(listed: Path) -> None:
    """Have Triton's list of a kernel's files say where they are now."""
    names = [path.name for path in _listed(listed.parent)]
    paths = {name: str(listed.parent.absolute() / name) for name in names}
    listed.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")


def _listed(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (_BINARY, _DESCRIPTION) and not path.name.startswith(_LIST):
            yield path
