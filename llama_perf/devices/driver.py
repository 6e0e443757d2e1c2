"""What `nvidia-smi` says of a machine's GPUs and its driver, and the torch that fits.

Knows no torch and imports nothing but the standard library: a machine asks before it
has anything else.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

INDEX = "https://download.pytorch.org/whl/"
# The builds of torch for CUDA, by the least CUDA that a driver must know for each. Of
# torch 2.13 there are cu126, cu129, cu130 and cu132; cu128 ends with 2.11.
BUILDS = {(13, 0): "cu130", (12, 9): "cu129", (12, 8): "cu128", (12, 6): "cu126"}
OLDEST = "12.6"
# Where Windows puts it inside its Linux, whose PATH may lack the folder.
_WSL = "/usr/lib/wsl/lib/nvidia-smi"
# Seconds for each of two questions, and characters of an answer that names no GPU.
_PATIENCE_S = 20
_SHOWN = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """The GPUs and driver that `nvidia-smi` lists; `problem` says why it lists none."""

    gpus: tuple[str, ...] = ()
    version: str | None = None
    cuda: str | None = None
    problem: str | None = None

    @property
    def description(self) -> str:
        """GPUs and versions in words."""
        return (
            f"{', '.join(self.gpus)} (driver {self.version or 'unknown'},"
            f" CUDA {self.cuda or 'unknown'})"
        )


def ask_driver() -> Driver | None:
    """What `nvidia-smi` says, asked once a process; None where there is none."""
    command = shutil.which("nvidia-smi") or shutil.which(_WSL)
    return None if command is None else _asked(command)


@cache
def _asked(command: str) -> Driver:
    def output(*more: str) -> str:
        done = subprocess.run(
            [command, *more],
            capture_output=True,
            encoding="utf-8",
            # It is shown to the user at most.
            errors="replace",
            timeout=_PATIENCE_S,
            check=True,
        )
        return done.stdout

    try:
        listed, shown = output("-L"), output()
    except subprocess.CalledProcessError as error:
        ended = f"nvidia-smi ended with exit code {error.returncode}"
        return Driver(problem=_says(f"{error.stdout}\n{error.stderr}", otherwise=ended))
    except subprocess.TimeoutExpired:
        return Driver(problem=f"nvidia-smi gave no answer within {_PATIENCE_S} s")
    except OSError as error:
        return Driver(problem=f"nvidia-smi cannot be run: {error.strerror}")
    # Parts of a GPU follow it, indented.
    gpus = re.findall(r"^GPU \d+: (.+?)(?: \(UUID|$)", listed, re.MULTILINE)
    version = re.search(r"Driver Version:\s*([\d.]*\d)", shown)
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]*\d)", shown)
    return Driver(
        gpus=tuple(gpus),
        problem=None if gpus else _says(listed, otherwise="nvidia-smi lists no GPU"),
        version=version and version[1],
        cuda=cuda and cuda[1],
    )


def _says(text: str, *, otherwise: str) -> str:
    """The first line of `text` as what `nvidia-smi` says; `otherwise` without one."""
    lines = text.strip().splitlines()
    return f"nvidia-smi says {lines[0][:_SHOWN]!r}" if lines else otherwise


def numbers(version: str) -> tuple[int, ...]:
    """(12, 4) of "12.4"."""
    return tuple(int(part) for part in version.split("."))


def build_for(cuda: str) -> str | None:
    """The newest build of torch that runs on a driver for `cuda`, such as "12.4"."""
    fitting = (name for oldest, name in BUILDS.items() if numbers(cuda) >= oldest)
    return next(fitting, None)


def remedy(cuda: str | None, *, otherwise: str = OLDEST) -> str:
    """What to do on a driver for `cuda`, where a newer one would be for `otherwise`."""
    update = f"update the driver to one for CUDA {otherwise} or newer"
    build = None if cuda is None else build_for(cuda)
    if build is None:
        return update
    # Of this interpreter: `make` activates no environment.
    pip = f"{shlex.quote(sys.executable)} -m pip"
    return f"{pip} install --force-reinstall torch --index-url {INDEX}{build}"


def visible() -> str | None:
    """CUDA_VISIBLE_DEVICES, where it is set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def hidden() -> bool:
    """Whether the user hides every GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}


def why_unseen(driver: Driver, *, torch: str, built_for: str | None) -> str:
    """Why a torch for CUDA `built_for` (None: for the CPU) sees no listed GPU."""
    listed = f"nvidia-smi lists {driver.description}"
    if built_for is None:
        return f"{listed}, and torch {torch} is a CPU build: {remedy(driver.cuda)}"
    # Within one major version a newer CUDA runs on an older driver.
    if driver.cuda is not None and numbers(driver.cuda)[0] < numbers(built_for)[0]:
        return (
            f"{listed}, too old for torch {torch} of CUDA {built_for}:"
            f" {remedy(driver.cuda, otherwise=built_for)}"
        )
    if (chosen := visible()) is not None:
        return (
            f"{listed}, and CUDA_VISIBLE_DEVICES={chosen!r} names none of them: give an"
            f" index from 0 to {len(driver.gpus) - 1} or a UUID of `nvidia-smi -L`"
        )
    return (
        f"{listed}, and torch {torch} of CUDA {built_for} cannot use it:"
        ' `python -c "import torch; torch.cuda.init()"` says why'
    )
