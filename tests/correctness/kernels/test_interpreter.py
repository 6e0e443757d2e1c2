"""The tests of Triton kernels in its interpreter, which needs no card."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[3]
FILES = [
    path.relative_to(ROOT)
    for path in sorted(Path(__file__).parents[1].glob("*/test_*.py"))
    if re.search(r"\b(card|any_device): torch\.device", path.read_text("utf-8"))
]


@pytest.mark.parametrize("room", sorted({file.parent.name for file in FILES}))
def test_in_the_interpreter(room: str, pytestconfig: pytest.Config) -> None:
    """All tests that take a device of kernels pass, and none is skipped.

    Triton reads TRITON_INTERPRET when it is imported, so they run in another process,
    which takes six seconds to start: one for all of a room.
    """
    files = [str(file) for file in FILES if file.parent.name == room]
    slow = ["--slow"] if pytestconfig.getoption("slow") else ["-m", "not slow"]
    chosen = ["-k", "interpreter", *slow, *files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
