"""The environment of a measurement: versions, notes on the machine, compilers.

Looks for compilers, Python's headers and Triton, and runs none. Knows which versions of
torch compile a row to wrong values.
"""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from packaging.version import Version

from llama_perf.devices import processor
from llama_perf.devices.device import device_of, fingerprint, package_version
from llama_perf.devices.links import card_links
from llama_perf.files import CHECKOUT, is_checkout
from llama_perf.kernels import cpp_library
from llama_perf.llama import code_cache
from llama_perf.measure.gpu_state import GpuWatch
from llama_perf.results.run import Environment
from llama_perf.rows.spec import RowSpec
from llama_perf.rows.transformers_fields import TRANSFORMERS

# Seen wrong with 2.11.0 on an AMD EPYC, right there on an Intel Xeon with AMX and the
# strides of `compiler_settings`, and right with 2.13.0; 2.12 was not tried.
_INT8DQ_RIGHT_FROM = Version("2.13")


def collect(device: torch.device) -> Environment:
    """The environment of `device` and of this process."""
    return Environment(
        **fingerprint(device),
        transformers=package_version("transformers"),
        bitsandbytes=package_version("bitsandbytes"),
        gemlite=package_version("gemlite"),
        llama_perf=package_version("llama-perf"),
        commit=_commit() if is_checkout() else None,
    )


def of_rows(environment: Environment, rows: Iterable[RowSpec]) -> Environment:
    """The environment of a run of `rows`: with several ranks on GPUs, of all of them.

    Its key says how many GPUs torch sees, and how they are linked.
    """
    if all(row.ranks == 1 or row.device != "cuda" for row in rows):
        return environment
    cards = torch.cuda.device_count()
    if environment.cards is not None or cards < 2:
        return environment
    links = card_links()
    key = f"{environment.device_key}-x{cards}-{links}"
    return replace(environment, device_key=key, cards=cards, links=links)


def _commit() -> str | None:
    """The checkout's commit, short; None without git."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(
            command, text=True, timeout=20, cwd=CHECKOUT, stderr=subprocess.DEVNULL
        )
        return commit.strip() or None
    return None


def machine_notes(device: torch.device) -> list[str]:
    """Which of several GPUs it is, what of it is unknown, a silent driver, WSL.

    Also why compiled code is not kept, where it is not.
    """
    lines = device_of(device).notes()
    if (problem := GpuWatch(device).problem) is not None:
        lines.append(f"state of the GPU: {problem}")
    problems = [code_cache.why_not_kept()]
    if device.type == "cpu":
        problems.append(cpp_library.why_not_kept())
    # Both lie in one folder, unless the user names others.
    if reasons := "; ".join(dict.fromkeys(filter(None, problems))):
        lines.append(f"compiled code is not kept for later runs: {reasons}")
    if processor.is_wsl():
        lines.append(
            "WSL: the driver is Windows', whose programs may use the GPU and the"
            " processor unseen; it may not report power and clocks, and without saying"
            " so it moves what does not fit the GPU into the machine's slower memory"
        )
    return lines


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
    ours = native or (row.engine != TRANSFORMERS and row.attention == "decode")
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


def broken_upstream(row: RowSpec) -> str:
    """Why what `row` would measure is not what it names, or an empty string."""
    if (
        (row.quantization, row.kernels, row.device) == ("int8dq", "torchao", "cpu")
        and row.compile
        and Version(Version(torch.__version__).base_version) < _INT8DQ_RIGHT_FROM
    ):
        # Inductor's fused linear with int8 activations takes the scale of one token
        # for a zero-dimensional tensor and misreads it: products are off by 1e4.
        return (
            f"torch {torch.__version__} compiles torchao's int8dq of one token to wrong"
            f" values on CPU; torch {_INT8DQ_RIGHT_FROM} does not"
        )
    return ""
