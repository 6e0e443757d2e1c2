"""What `make wheelhouse` brought along for a check: wheels, and compiled kernels.

Imports nothing that a machine with a card may lack.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from lzma import LZMAError
from pathlib import Path

from scripts.offline.kernel_cache import Compiler, kernels, unpack
from scripts.offline.steps import Runner, Step, Told

ROOT = Path(__file__).resolve().parents[2]
_WHEELS_S = 120.0


def no_wheels(arguments: argparse.Namespace) -> str | None:
    """Why `--wheels` cannot be used, None where it can."""
    if arguments.wheels is None or arguments.wheels.is_dir():
        return None
    return f"wheels: {str(arguments.wheels)!r} is no folder"


def install(runner: Runner, folder: Path | None, site: Path) -> None:
    """Take from `folder` what this Python lacks, and nothing that it has.

    Without one from the checkout's wheelhouse, if it has one.
    """
    folder = _folder(folder)
    if folder is None:
        runner.note("wheels", Told.OK, "no folder of wheels; what is installed is used")
        return
    try:
        wheels, missing = _selection(folder)
    except ImportError as error:
        runner.note("wheels", Told.FAILED, f"{error}; is packaging in {folder}?")
        return
    except LookupError as error:
        runner.note("wheels", Told.FAILED, str(error))
        return
    names = ", ".join(path.name.split("-")[0] for path in wheels) or "none"
    print(f"wheels this Python lacks: {names}", flush=True)
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        command += ["--no-deps", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--root-user-action=ignore"]
        command += ["--target", str(site), *map(str, wheels)]
        runner.run(Step(name="wheels", command=command, limit_s=_WHEELS_S))
        runner.add_to_path(site)
    else:
        runner.note("wheels", Told.OK, "all is installed")
    if missing:
        runner.note("requirements", Told.FAILED, "; ".join(missing))


def _selection(folder: Path) -> tuple[list[Path], list[str]]:
    before = list(sys.path)
    # A wheel of plain Python can be imported as it is. Only while it is needed: what
    # stands on the path counts as installed.
    sys.path += [str(path) for path in folder.glob("packaging-*.whl")]
    try:
        wheels = importlib.import_module("scripts.offline.wheels")
    finally:
        sys.path[:] = before
    lacking, missing = wheels.missing_here(ROOT / "pyproject.toml", folder)
    return [wheel.path for wheel in lacking], missing


def _folder(given: Path | None) -> Path | None:
    default = ROOT / "wheelhouse"
    return default if given is None and default.is_dir() else given


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """Triton's cache with the kernels, and their keys, that travelled."""

    cache: Path
    keys: frozenset[str]


def bring_kernels(runner: Runner, folder: Path | None) -> Brought | None:
    """Have Triton find the kernels that were compiled for this machine's; say how many.

    Those of every archive for its versions of Triton and Python, in a cache of this
    checkout's own, unless `TRITON_CACHE_DIR` names one. None where there are none.
    """
    try:
        compiler = Compiler.here()
    except PackageNotFoundError:
        runner.note("kernels", Told.OK, "none brought: this Python has no Triton")
        return None
    found = _folder(folder)
    archives = [] if found is None else compiler.archives(found)
    if not archives:
        told = f"none brought for {compiler.told}: all are compiled here"
        runner.note("kernels", Told.OK, told)
        return None
    named = os.environ.get("TRITON_CACHE_DIR")
    cache = Path(named) if named else ROOT / ".llama-perf" / "triton"
    for archive in archives:
        try:
            unpack(archive, cache)
        except (tarfile.TarError, LZMAError, EOFError, OSError) as error:
            # What it had is compiled here instead.
            runner.note("kernels", Told.FAILED, f"{archive.name}: {error}")
    runner.variables["TRITON_CACHE_DIR"] = str(cache)
    keys = frozenset(kernels(cache))
    count = f"{len(keys)} brought for {compiler.told}"
    runner.note("kernels", Told.OK, count)
    return Brought(cache=cache, keys=keys)


def tell_compiled(runner: Runner, brought: Brought | None) -> None:
    """Say how many kernels had to be compiled beside those that were brought."""
    if brought is not None:
        compiled = kernels(brought.cache) - brought.keys
        runner.note("kernels", Told.OK, f"{len(compiled)} more compiled here")
