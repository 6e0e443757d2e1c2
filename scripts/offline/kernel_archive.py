"""Triton kernels compiled for a card elsewhere, as one file that travels there.

Triton finds a kernel in its cache by the kernel's source, its target and Triton's own
files. So a kernel that was compiled elsewhere is found if Triton comes from the same
wheel, for the same Python. Only a kernel's binary and its description travel. Standard
library only, since the machine with the card may lack everything else.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from lzma import LZMAError
from pathlib import Path

from llama_perf.errors import UserError
from scripts.offline.options import ROOT, TABLE_SETS, wheelhouse_of
from scripts.offline.steps import Status, StepRunner

TARGETS = ("sm_80", "sm_90", "sm_100")
ALL_SETS = ("cuda-check", "cuda", *TABLE_SETS)
_BINARY, _DESCRIPTION = ".cubin", ".json"
# Triton's list of a kernel's files, with the path of each.
_LIST = "__grp__"
_PRINT_COMPILER = (
    "import dataclasses, json, scripts.offline.compile_rows;"
    "from scripts.offline.kernel_archive import Compiler;"
    "print(json.dumps(dataclasses.asdict(Compiler.here())))"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiler:
    """What a kernel's key depends on: the versions of a wheel of Triton."""

    triton: str
    python: str

    @classmethod
    def here(cls) -> Compiler:
        """Of this interpreter; raises PackageNotFoundError without Triton."""
        python = ".".join(platform.python_version_tuple()[:2])
        return cls(triton=version("triton"), python=python)

    @property
    def label(self) -> str:
        """In words."""
        return f"Triton {self.triton} and Python {self.python}"

    def archive(self, target: str) -> str:
        """The file's name, for a `target` such as sm_90."""
        return f"triton-{self.triton}-python-{self.python}-{target}.tar.xz"

    def archives(self, folder: Path) -> list[Path]:
        """The archives in `folder` for this compiler, of every target."""
        return sorted(folder.glob(self.archive("sm_*")))


def kernel_keys(cache: Path) -> frozenset[str]:
    """The keys of the kernels in a Triton cache."""
    return frozenset(path.parent.name for path in cache.glob(f"*/*{_BINARY}"))


def pack(cache: Path, archive: Path) -> int:
    """Write the kernels of a Triton cache to `archive`; returns their number."""
    keys = sorted(kernel_keys(cache))
    with tarfile.open(archive, "w:xz") as out:
        for key in keys:
            for path in sorted((cache / key).iterdir()):
                if path.suffix in (_BINARY, _DESCRIPTION):
                    out.add(path, arcname=f"{key}/{path.name}")
    return len(keys)


def unpack(archive: Path, cache: Path) -> int:
    """Add the kernels of `archive` to a Triton cache; returns their number."""
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as file:
        file.extractall(cache, filter="data")
        lists = [name for name in file.getnames() if _LIST in name]
    for name in lists:
        _write_paths(cache / name)
    return len(lists)


def _write_paths(list_path: Path) -> None:
    """Write the present paths of a kernel's files into Triton's list of them."""
    paths = {
        path.name: str(path.absolute())
        for path in sorted(list_path.parent.iterdir())
        if path.suffix in (_BINARY, _DESCRIPTION) and path != list_path
    }
    list_path.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")


def compile_kernels(
    out: Path, target: str, python: Path, *, sets: Sequence[str] = ALL_SETS
) -> tuple[Path, int]:
    """Compile the kernels that the rows of `sets` launch; the archive and their number.

    `python` is an interpreter that has the machine's Triton. It runs `compile_rows` in
    as many processes as there are cores. Raises UserError if it cannot compile.
    """
    compiler = _compiler_of(python)
    count = os.cpu_count() or 1
    command = [str(python), "-m", "scripts.offline.compile_rows"]
    command += [target.removeprefix("sm_")]
    with tempfile.TemporaryDirectory(prefix="kernels-") as name, ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        processes = [
            subprocess.Popen(
                [*command, f"{part}/{count}", *sets],
                env=_environment(TRITON_CACHE_DIR=name),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            for part, log in enumerate(logs, start=1)
        ]
        for process in processes:
            stack.callback(_end, process)
        for process, log in zip(processes, logs, strict=True):
            if process.wait() != 0:
                log.seek(0)
                raise _cannot(python, log.read().decode(errors="replace"))
        archive = out / compiler.archive(target)
        return archive, pack(Path(name), archive)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _compiler_of(python: Path) -> Compiler:
    try:
        done = subprocess.run(
            [str(python), "-c", _PRINT_COMPILER],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise _cannot(python, str(error.strerror)) from None
    if done.returncode != 0:
        raise _cannot(python, done.stderr)
    return Compiler(**json.loads(done.stdout.splitlines()[-1]))


def _environment(**variables: str) -> dict[str, str]:
    # This checkout's kernels, whatever that Python has installed.
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def _cannot(python: Path, output: str) -> UserError:
    reason = (output.strip().splitlines() or ["it printed nothing"])[-1]
    return UserError(f"kernels-python: {str(python)!r} compiles no kernels: {reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpackedKernels:
    """A Triton cache and the keys of the kernels that were unpacked into it."""

    cache: Path
    keys: frozenset[str]


def unpack_kernels(runner: StepRunner, folder: Path | None) -> UnpackedKernels | None:
    """Let Triton find the kernels that were compiled elsewhere, and report how many.

    Every archive of `folder` for this Triton and Python is unpacked into a cache of
    this checkout, or into the cache that `TRITON_CACHE_DIR` names. Returns None if
    there is no archive.
    """
    try:
        compiler = Compiler.here()
    except PackageNotFoundError:
        runner.note("kernels", Status.OK, "none unpacked: this Python has no Triton")
        return None
    wheelhouse = wheelhouse_of(folder)
    archives = [] if wheelhouse is None else compiler.archives(wheelhouse)
    if not archives:
        reason = f"no archive for {compiler.label}: all are compiled here"
        runner.note("kernels", Status.OK, reason)
        return None
    named = os.environ.get("TRITON_CACHE_DIR")
    cache = Path(named) if named else ROOT / ".llama-perf" / "triton"
    for archive in archives:
        try:
            unpack(archive, cache)
        except (tarfile.TarError, LZMAError, EOFError, OSError) as error:
            # The kernels in it are compiled here instead.
            runner.note("kernels", Status.FAILED, f"{archive.name}: {error}")
    runner.variables["TRITON_CACHE_DIR"] = str(cache)
    keys = kernel_keys(cache)
    runner.note("kernels", Status.OK, f"{len(keys)} unpacked for {compiler.label}")
    return UnpackedKernels(cache=cache, keys=keys)


def report_compiled(runner: StepRunner, unpacked: UnpackedKernels | None) -> None:
    """Report how many kernels had to be compiled in addition to the unpacked ones."""
    if unpacked is not None:
        compiled = kernel_keys(unpacked.cache) - unpacked.keys
        runner.note("kernels", Status.OK, f"{len(compiled)} more compiled here")
