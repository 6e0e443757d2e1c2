"""Compiled Triton kernels as one file, which travels to a machine with a card.

Triton finds a kernel in its cache by the kernel's source, its target and Triton's own
files. So one that was compiled elsewhere is found there, where the wheel of Triton is
the same, and with it the Python. Of each only what is loaded travels: its binary and
its description. Standard library alone.
"""

from __future__ import annotations

import json
import platform
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
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

    @classmethod
    def here(cls) -> Compiler:
        """Of this interpreter; raises PackageNotFoundError without Triton."""
        python = ".".join(platform.python_version_tuple()[:2])
        return cls(triton=version("triton"), python=python)

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
    paths = {
        path.name: str(path.absolute())
        for path in sorted(listed.parent.iterdir())
        if path.suffix in (_BINARY, _DESCRIPTION) and path != listed
    }
    listed.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")
