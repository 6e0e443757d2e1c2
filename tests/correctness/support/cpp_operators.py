"""What tests of the C++ operators need: a compiler, and a number of threads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.correctness.support.kernel_samples import INTERPRETED

NEEDED = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(INTERPRETED, reason="Triton's kernels take its place"),
]
"""Marks of a module that runs them."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch's operators on `count` threads, then on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
