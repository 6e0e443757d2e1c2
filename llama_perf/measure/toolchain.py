"""What compiles a row's kernels here: compilers, Python's headers, Triton.

Looks for them and runs none. Knows no card.
"""

import os
import shutil
import sysconfig
from pathlib import Path

from llama_perf.devices.device import device_of, package_version
from llama_perf.rows.spec import RowSpec


def compiler_problem(device: str) -> str | None:
    """Why nothing can be compiled for `device` here, or None.

    Inductor builds C++ kernels on CPU. On CUDA it writes Triton's, and Triton builds a
    launcher in C for each, with Python's headers.
    """
    if device_of(device).needs_triton:
        return triton_problem()
    # Inductor looks for g++ only.
    reason = _no_compiler("CXX", "g++", otherwise="g++ is not installed")
    return reason and (
        f"torch.compile needs a C++ compiler, and {reason} (package g++, on Fedora"
        " gcc-c++)"
    )


def triton_problem() -> str | None:
    """Why Triton cannot launch a kernel here, or None."""
    if package_version("triton") is None:
        return "Triton is not installed (pip install triton)"
    reason = _no_compiler("CC", "gcc", "clang", otherwise="none is installed")
    if reason is not None:
        return f"Triton needs a C compiler, and {reason} (package gcc)"
    header = _include_folder() / "Python.h"
    if not header.is_file():
        return (
            f"Triton needs {header}, which is not there (package python3-dev, on Fedora"
            " python3-devel)"
        )
    return None


def build_problem(row: RowSpec) -> str | None:
    """Why the kernels of `row` cannot be compiled here, or None.

    On a GPU the native schemes and `decode` attention are Triton's kernels. Modules of
    torch and torchao are not, and such rows run without a compiler.
    """
    native = row.quantization is not None and row.kernels == "native"
    ours = native or row.fused or row.attention == "decode"
    if row.compile or (ours and device_of(row.device).needs_triton):
        return compiler_problem(row.device)
    return None


def _no_compiler(variable: str, *commands: str, otherwise: str) -> str | None:
    """Why no compiler is found; `commands` count where `variable` is not set."""
    chosen = os.environ.get(variable)
    if any(map(shutil.which, commands if chosen is None else (chosen,))):
        return None
    return otherwise if chosen is None else f"{variable}={chosen} is not there"


def _include_folder() -> Path:
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder that has no headers; Triton knows it too.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"])
