"""What compiling takes: each thing that is missing has its line."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llama_perf import ceiling, toolchain
from llama_perf.toolchain import compiler_problem, python_header, triton_problem


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The commands that are; Triton and Python's headers are there as well."""
    found: set[str] = set()
    monkeypatch.setattr(shutil, "which", lambda name: name in found or None)
    monkeypatch.setattr(toolchain, "package_version", lambda _: "1.0")
    monkeypatch.setattr(toolchain, "python_header", lambda: Path(__file__))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    return found


@pytest.mark.parametrize(
    ("device", "kind", "variable", "usual"),
    [("cpu", " C++ ", "CXX", "g++"), ("cuda", " C ", "CC", "gcc")],
)
def test_a_missing_compiler_is_told(
    installed: set[str],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    kind: str,
    variable: str,
    usual: str,
) -> None:
    told = str(compiler_problem(device))
    assert f"{kind}compiler" in told
    assert "none is installed (package g" in told
    installed.add(usual)
    assert compiler_problem(device) is None
    installed.clear()
    installed.add("icx")
    assert compiler_problem(device) == told
    monkeypatch.setenv(variable, "icx")
    assert compiler_problem(device) is None


def test_triton_takes_no_other_compiler_than_its_own(installed: set[str]) -> None:
    installed.add("cc")
    assert triton_problem() is not None


def test_a_card_needs_triton_and_a_cpu_does_not(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.update(("gcc", "g++"))
    monkeypatch.setattr(toolchain, "package_version", lambda _: None)
    assert triton_problem() == "CUDA kernels need triton, which is not installed"
    assert compiler_problem("cpu") is None


def test_missing_headers_are_told_with_their_package(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.update(("gcc", "g++"))
    monkeypatch.setattr(toolchain, "python_header", lambda: Path("/no/Python.h"))
    told = str(triton_problem())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"/no/Python.h is missing (package python{version}-dev," in told
    assert compiler_problem("cuda") == f"torch.compile: {told}"
    assert compiler_problem("cpu") is None


def test_the_header_is_looked_for_where_triton_does() -> None:
    assert re.search(r"python3\.\d+t?/Python\.h$", str(python_header()))


def test_a_ceiling_without_a_compiler_has_no_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ceiling, "triton_problem", lambda: "no compiler")
    monkeypatch.setattr(ceiling, "read_gb_s", lambda _device: 4000.0)
    monkeypatch.setattr(ceiling, "copy_gb_s", lambda _device: 4100.0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    found = ceiling.measure_ceiling(torch.device("cuda"))
    assert (found.bandwidth_gb_s, found.launch_us) == (4100.0, None)
