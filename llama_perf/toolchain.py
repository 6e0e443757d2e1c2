"""What compiling takes here: a C++ compiler for a CPU; Triton, C and headers for CUDA.

Triton compiles a launcher in C when it launches its first kernel, also of a row that
torch does not compile. Knows no rows.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from llama_perf.environment import package_version

_C = ("gcc", "clang")


def compiler_problem(device: str) -> str | None:
    """Why `torch.compile` cannot work for `device` here, or None."""
    if device == "cuda":
        problem = triton_problem()
        return None if problem is None else f"torch.compile: {problem}"
    if _has_one_of(os.environ.get("CXX"), "g++", "clang++"):
        return None
    return "torch.compile needs a C++ compiler, and none is installed (package g++)"


def triton_problem() -> str | None:
    """Why no kernel of Triton can be launched here, or None."""
    if package_version("triton") is None:
        return "CUDA kernels need triton, which is not installed"
    # Those that Triton looks for: CC alone where it is set.
    if not _has_one_of(*([os.environ["CC"]] if "CC" in os.environ else _C)):
        return (
            "CUDA kernels need a C compiler, with which Triton builds their launcher,"
            " and none is installed (package gcc)"
        )
    header = python_header()
    if not header.is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            "CUDA kernels need Python.h, with which Triton builds their launcher, and"
            f" {header} is missing (package python{version}-dev, on Fedora and RHEL"
            " python3-devel)"
        )
    return None


def python_header() -> Path:
    """Where Triton looks for Python.h."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme for what pip installs has no headers.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"], "Python.h")


def _has_one_of(*commands: str | None) -> bool:
    return any(shutil.which(command) for command in commands if command)
