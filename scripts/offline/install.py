"""What a machine without network lacks, installed from the folder that travelled there.

pip says which wheels are lacking. Kernels were compiled elsewhere: Triton finds one in
its cache by the kernel's source, its target and Triton's own files, so if Triton comes
from the same wheel, for the same Python. Standard library only, since nothing of this
project is installed yet.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from lzma import LZMAError
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from llama_perf.errors import UserError
from scripts import ROOT
from scripts.offline.steps import Status, Step, StepRunner

# A CUDA machine has these of its own, in the builds that fit its driver.
LEFT_OUT = re.compile(r"torch|triton|numpy|(?:nvidia|cuda)-(?!ml-py$).*")
# It requires a client of the hub, which reading a file never imports: megabytes.
ALONE = "tokenizers"
# A kernel's binary and its description travel.
KERNEL_FILES = (".cubin", ".json")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# Triton's list of a kernel's files, with the path of each.
_LIST = "__grp__"


def is_left_out(requirement: str) -> bool:
    """Whether the machine has the package of its own, or has to."""
    return LEFT_OUT.fullmatch(_name(requirement)) is not None


def _name(requirement: str) -> str:
    name = re.split(r"[^\w.-]", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def root_requirements() -> list[str]:
    """The dependencies of the package and the one that only its tests need."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    tests = project["optional-dependencies"]["dev"]
    more = [line for line in tests if line.startswith("hypothesis")]
    return [*project["dependencies"], *more]


def run_python(python: str | Path, *words: str, **variables: str) -> str:
    """What it prints; raises UserError with pip's first error or else the last line.

    `variables` are added to its environment.
    """
    command, environment = [str(python), *words], {**os.environ, **variables}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
    except OSError as error:
        raise UserError(error.strerror) from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["it gave no reason"]
        pips = [line for line in lines if line.startswith("ERROR: ")]
        reason = (pips or lines[-1:])[0].removeprefix("ERROR: ")
        raise UserError(reason) from None


def run_pip(*words: str, **variables: str) -> str:
    """What pip prints; raises UserError with the first error that it reports."""
    return run_python(*_PIP, *words, **variables)


def lacking(folder: Path, requirements: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The wheels of `folder` that this Python lacks, and why any requirement fails.

    What the machine has of its own must have the right version, but its requirements
    are not looked at: they are the machine's business. Nor are those of ALONE.
    """
    wheels: set[Path] = set()
    problems: list[str] = []
    command = ["install", "--dry-run", "--report", "-", "--quiet", "--isolated"]
    command += ["--no-index", "--find-links", str(folder), "--only-binary=:all:"]

    def ask(lines: Sequence[str], *options: str) -> None:
        try:
            # No setting of the machine's may add another place to look in.
            printed = run_pip(*command, *options, *lines, PIP_CONFIG_FILE=os.devnull)
        except UserError as error:
            if len(lines) == 1:
                problems.append(f"{lines[0]}: {error}")
                return
            # pip stops at the first package that is missing. The others are wanted
            # all the same.
            for line in lines:
                ask([line], *options)
            return
        for item in json.loads(printed)["install"]:
            path = urlparse(item["download_info"]["url"]).path
            wheels.add(Path(url2pathname(path)))

    alone = {line for line in requirements if is_left_out(line) or _name(line) == ALONE}
    for chosen, options in ((False, ()), (True, ("--no-deps",))):
        if lines := [line for line in requirements if (line in alone) == chosen]:
            ask(lines, *options)
    return sorted(wheels), problems


def install_wheels(runner: StepRunner, folder: Path | None, site: Path) -> None:
    """Install the packages of `folder` that this Python lacks into `site`, no others.

    Without a folder nothing is installed.
    """
    if folder is None:
        runner.note("wheels", Status.OK, "no folder of wheels; installed packages only")
        return
    wheels, missing = lacking(folder, root_requirements())
    names = ", ".join(path.name.split("-")[0] for path in wheels) or "none"
    print(f"wheels this Python lacks: {names}", flush=True)
    if wheels:
        command = [*_PIP, "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-cache-dir", "--root-user-action=ignore"]
        command += ["--target", str(site), *map(str, wheels)]
        runner.run(Step("wheels", command, limit_s=120))
        runner.path.insert(0, str(site))
    else:
        runner.note("wheels", Status.OK, "all packages are installed")
    if missing:
        runner.note("requirements", Status.FAILED, "; ".join(missing))


def compiler() -> str:
    """What a kernel's key depends on, as an archive's name has it.

    Raises PackageNotFoundError if this interpreter has no Triton.
    """
    major, minor, *_ = sys.version_info
    return f"triton-{version('triton')}-python-{major}.{minor}"


def kernel_keys(cache: Path) -> frozenset[str]:
    """The keys of the kernels in a Triton cache."""
    return frozenset(path.parent.name for path in cache.glob("*/*.cubin"))


def _unpack(archive: Path, cache: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(cache, filter="data")
        lists = [cache / name for name in file.getnames() if _LIST in name]
    for path in lists:
        # Triton reads the present paths of a kernel's files there.
        paths = {
            other.name: str(other.absolute())
            for other in sorted(path.parent.iterdir())
            if other.suffix in KERNEL_FILES and other != path
        }
        path.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")


@contextmanager
def install_kernels(runner: StepRunner, folder: Path | None) -> Iterator[None]:
    """Let Triton find the kernels that were compiled elsewhere, and report how many.

    Every archive of `folder` for this Triton and Python is unpacked into a cache of
    this checkout, or into the cache that `TRITON_CACHE_DIR` names. At the end it
    reports how many more had to be compiled.
    """
    archives = []
    try:
        name = compiler()
        reason = f"no archive of {name}: all are compiled here"
        if folder is not None:
            archives = sorted(folder.glob(f"{name}-sm_*.tar.xz"))
    except PackageNotFoundError:
        reason = "none unpacked: this Python has no Triton"
    if not archives:
        runner.note("kernels", Status.OK, reason)
        yield
        return
    default = ROOT / ".llama-perf" / "triton"
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or default)
    for archive in archives:
        try:
            _unpack(archive, cache)
        except (tarfile.TarError, LZMAError, EOFError, OSError) as error:
            # The kernels in it are compiled here instead.
            runner.note("kernels", Status.FAILED, f"{archive.name}: {error}")
    runner.variables["TRITON_CACHE_DIR"] = str(cache)
    unpacked = kernel_keys(cache)
    runner.note("kernels", Status.OK, f"{len(unpacked)} unpacked for {name}")
    yield
    compiled = kernel_keys(cache) - unpacked
    runner.note("kernels", Status.OK, f"{len(compiled)} more compiled here")
