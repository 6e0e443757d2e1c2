"""A virtual environment for a peer that a study compares this project with."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def make_environment(folder: Path, packages: Iterable[str]) -> Path:
    """The Python of an environment in `folder` with `packages`, which pip installs."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    quietly = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", "install", *quietly, *packages], check=True)
    return python
