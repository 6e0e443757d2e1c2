"""The operators of a CPU in C++, compiled when one is first needed.

Their sources are in `cpp/`. They are compiled for this processor by torch's loader of
extensions, once for each version of the sources and of torch. Without a compiler the
operators run in plain torch, and `load` says why.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from filelock import FileLock

from llama_perf import files
from llama_perf.devices import processor

SOURCES = Path(__file__).with_name("cpp")
_FLAGS = ("-O3", "-std=c++20", "-Wno-psabi", "-Wno-ignored-attributes")
# A finished build leaves an empty file of this name beside its library.
_BUILT = "built"
KEPT_BUILDS = 4
"""How many versions are kept: those that were used last."""
# By the instructions that torch uses here: ATEN_CPU_CAPABILITY lowers both.
_TARGETS = {"AVX512": ("-march=native",), "AVX2": ("-mavx2", "-mfma", "-mf16c")}


@cache
def load() -> str | None:
    """Have torch know the operators' CPU kernels; the reason where it cannot."""
    flags = [*_FLAGS, *_target()]
    name = f"llama_perf_{_key(flags)}"
    kept = folder() / name
    try:
        if not _load_built(kept):
            own = kept if _can_be_kept(kept) else files.process_folder() / name
            _load_anew(own, flags)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        first_line, *_ = str(error).strip().splitlines() or [type(error).__name__]
        return f"C++ operators are not compiled here: {first_line}"
    # Another process may remove the same.
    with suppress(OSError):
        os.utime(kept)
        _remove_older_builds()
    return None


def _load_built(own: Path) -> bool:
    """Load the operators from a finished build; False where there is no sound one.

    torch would compile the same sources again for another folder, such as that of a
    revision, which may have the library in use.
    """
    # A build of another user, or on a read-only disk, serves as well.
    with suppress(OSError):
        if (own / _BUILT).exists():
            torch.ops.load_library(own / f"{own.name}.so")
            return True
    return False


def why_not_kept() -> str | None:
    """Why a build is not kept for later runs; None where it is."""
    return files.why_not_kept(folder())


def _can_be_kept(own: Path) -> bool:
    if why_not_kept() is not None:
        return False
    # Another user's lock or build may be in its place, or a file.
    with suppress(OSError):
        own.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{own}.lock"):
            return os.access(own, os.W_OK)
    return False


def _load_anew(own: Path, flags: Sequence[str]) -> None:
    """Build the operators, unless another process does so meanwhile, and load them."""
    # The interpreter's folder has the ninja that pip installed.
    commands = os.environ.get("PATH", os.defpath)
    path = os.pathsep.join([str(Path(sys.executable).parent), commands])
    own.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(f"{own}.lock"),
        patch.dict(os.environ, PATH=path),
        warnings.catch_warnings(),
    ):
        # It warns of compilers that it does not know.
        warnings.simplefilter("ignore")
        if not _load_built(own):
            _build(own.name, own, flags)


def _build(name: str, own: Path, flags: Sequence[str]) -> None:
    """Compile and load the operators; raises what torch raises where it cannot."""
    from torch.utils import cpp_extension

    # Of a process that was killed while it compiled: torch would wait for it.
    (own / "lock").unlink(missing_ok=True)
    # A damaged library would be taken for a finished one.
    (own / f"{name}.so").unlink(missing_ok=True)
    cpp_extension.load(
        name,
        [str(path) for path in sorted(SOURCES.glob("*.cpp"))],
        extra_cflags=list(flags),
        build_directory=str(own),
        is_python_module=False,
    )
    (own / _BUILT).touch()


def folder() -> Path:
    """Where they are kept: torch's folder of extensions if set, else our cache."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    return (
        Path(root).absolute()
        if root
        else files.cache_folder() / "compiled" / "operators"
    )


def _remove_older_builds() -> None:
    builds = [path for path in folder().glob("llama_perf_*") if path.is_dir()]
    builds.sort(key=lambda build: build.stat().st_mtime)
    for build in builds[:-KEPT_BUILDS]:
        shutil.rmtree(build, ignore_errors=True)
        Path(f"{build}.lock").unlink(missing_ok=True)


def _target() -> tuple[str, ...]:
    if processor.is_arm64():
        return ("-mcpu=native",)
    return _TARGETS.get(torch.backends.cpu.get_cpu_capability(), ())


def _key(flags: list[str]) -> str:
    """A hash of all that the compiled code depends on."""
    known = [torch.__version__, sys.version, processor.name(), processor.features()]
    known.append(processor.instructions())
    digest = hashlib.sha256("\n".join([*known, *flags]).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
