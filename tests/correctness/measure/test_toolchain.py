"""What compiles kernels: each thing that is missing is named, and who needs it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_perf.errors import NotRunnable
from llama_perf.measure import device_ceiling, toolchain
from llama_perf.measure.prepare import check_runnable
from llama_perf.measure.toolchain import build_problem, compiler_problem
from llama_perf.results.measurement import Ceiling
from llama_perf.rows.spec import RowSpec

EAGER = RowSpec(model="stories15M", attention="sdpa")
NO_C = "Triton needs a C compiler, and none is installed (package gcc)"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The commands of a machine that has Triton and Python's headers, and no other."""
    commands: set[str] = set()
    monkeypatch.setattr(shutil, "which", lambda name: name in commands or None)
    monkeypatch.setattr(toolchain, "package_version", lambda _: "1.0")
    monkeypatch.setattr(toolchain, "_include_folder", lambda: tmp_path)
    (tmp_path / "Python.h").touch()
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    return commands


def test_what_is_missing_is_told(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_cpp = (
        "torch.compile needs a C++ compiler, and g++ is not installed (package g++, on"
        " Fedora gcc-c++)"
    )
    assert compiler_problem("cpu") == no_cpp
    # Inductor takes no other name.
    installed.add("clang++")
    assert compiler_problem("cpu") == no_cpp
    # Triton takes no other name.
    installed.add("cc")
    assert compiler_problem("cuda") == NO_C
    installed |= {"gcc", "g++"}
    assert compiler_problem("cpu") is compiler_problem("cuda") is None
    monkeypatch.setenv("CXX", "icpx")
    monkeypatch.setenv("CC", "icx")
    told = no_cpp.replace("g++ is not installed", "CXX=icpx is not there")
    assert compiler_problem("cpu") == told
    told = "Triton needs a C compiler, and CC=icx is not there (package gcc)"
    assert compiler_problem("cuda") == told
    installed |= {"icpx", "icx"}
    assert compiler_problem("cpu") is compiler_problem("cuda") is None
    header = tmp_path / "Python.h"
    header.unlink()
    told = (
        f"Triton needs {header}, which is not there (package python3-dev, on Fedora"
        " python3-devel)"
    )
    assert compiler_problem("cuda") == told
    monkeypatch.setattr("llama_perf.measure.prepare.check_device", torch.device)
    with pytest.raises(NotRunnable, match=re.escape(told)):
        check_runnable(replace(EAGER, attention="decode", fused=True))
    monkeypatch.setattr(toolchain, "package_version", lambda _: None)
    told = "Triton is not installed (pip install triton)"
    assert compiler_problem("cuda") == told
    assert compiler_problem("cpu") is None


def test_the_folder_is_the_one_that_triton_compiles_with() -> None:
    assert (toolchain._include_folder() / "Python.h").is_file()


@pytest.mark.usefixtures("installed")
def test_every_row_that_runs_on_triton_asks_and_no_other() -> None:
    for change in (
        {"attention": "decode"},
        {"attention": "decode", "fused": True},
        {"quantization": "int8wo"},
        {"quantization": "int8wo", "kernels": "torchao", "compile": True},
        {"compile": True},
    ):
        assert build_problem(replace(EAGER, **change)) == NO_C, change
    assert build_problem(EAGER) is None
    torchao = replace(EAGER, quantization="int8wo", kernels="torchao")
    assert build_problem(torchao) is None
    cpu = replace(EAGER, device="cpu", attention="decode", quantization="int8wo")
    assert build_problem(cpu) is None


def test_the_ceiling_leaves_launches_out_where_none_can_be_compiled(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read_gb_s", "_copy_gb_s"):
        monkeypatch.setattr(device_ceiling, name, lambda _device: 100.0)
    monkeypatch.setattr(device_ceiling, "launch_us", lambda _device: (3.0, 0.5))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    found = device_ceiling.measure_ceiling(torch.device("cuda"))
    assert found == Ceiling(read_gb_s=100.0, copy_gb_s=100.0)
    installed.add("gcc")
    whole = device_ceiling.measure_ceiling(torch.device("cuda"))
    assert (whole.launch_us, whole.dependent_launch_us) == (3.0, 0.5)
