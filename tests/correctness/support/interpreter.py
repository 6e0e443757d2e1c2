"""Tests of Triton kernels in its interpreter, in a process of its own.

Triton reads TRITON_INTERPRET when it is imported. A file of such tests imports the
`device` fixture from here, and the test that runs the file there.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(
    params=[
        pytest.param("interpreter", id="interpreter"),
        pytest.param("cuda", id="cuda", marks=pytest.mark.cuda),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU in the interpreter's process, or a card."""
    if request.param == "cuda":
        if INTERPRETED or not torch.cuda.is_available():
            pytest.skip("no CUDA device on this machine")
        return torch.device("cuda")
    if not INTERPRETED:
        pytest.skip("test_in_the_interpreter runs it")
    return torch.device("cpu")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    """All tests of the importing file that take `device` pass, and none is skipped."""
    chosen = ["-k", "interpreter and not test_in_the_interpreter", str(request.path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
