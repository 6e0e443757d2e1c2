"""A file system that gets full: a real one where this process may mount it."""

import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

_BYTES = 64 * 1024


class Disk:
    """A folder on a small disk of its own.

    Where nothing can be mounted, writing any file in the folder fails once it is full.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.folder, self._patch = folder, patch
        command = ["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "tmpfs", str(folder)]
        try:
            self.is_real = not subprocess.run(command, capture_output=True).returncode
        except OSError:
            self.is_real = False

    def fill(self) -> None:
        """Use all of it."""
        if self.is_real:
            with (
                suppress(OSError),
                (self.folder / "fill").open("wb", buffering=0) as file,
            ):
                while True:
                    file.write(bytes(4096))
        else:
            self._patch.setattr(os, "fsync", self._full)

    def _full(self, descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(self.folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def unmount(self) -> None:
        """Leave an empty folder."""
        if self.is_real:
            subprocess.run(["umount", str(self.folder)], check=True)
