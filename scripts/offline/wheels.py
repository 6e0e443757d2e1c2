"""Which wheels a machine without network lacks: requirements -> wheels.

Walks pyproject.toml's dependencies and the Requires-Dist of each wheel on the way.
Knows no registry: whoever asks hands in how a wheel is found. Imports nothing but
`packaging`, since it runs where nothing else of this project's is installed yet.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from packaging.requirements import Requirement
from packaging.tags import Tag, sys_tags
from packaging.utils import (
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import Version

# What a CUDA machine has of its own, in the build that fits its driver.
LEFT_OUT = re.compile(r"torch|triton|numpy|(?:nvidia|cuda)-(?!ml-py$).*")
# The tests need it besides the dependencies of the package.
TEST_PACKAGES = frozenset({"hypothesis"})


class MissingWheel(LookupError):
    """No wheel satisfies a requirement; `str()` is the one line shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A wheel file and what its metadata says."""

    path: Path
    name: str
    version: Version
    tags: frozenset[Tag]
    requires: tuple[Requirement, ...]

    @classmethod
    def read(cls, path: Path) -> Wheel:
        """Read a wheel; raises MissingWheel for a file that is none."""
        try:
            name, number, _, tags = parse_wheel_filename(path.name)
            with ZipFile(path) as archive:
                member = next(
                    entry
                    for entry in archive.namelist()
                    if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry)
                )
                text = archive.read(member).decode()
        except (InvalidWheelFilename, BadZipFile, StopIteration) as error:
            raise MissingWheel(f"{path}: no readable wheel: {error}") from None
        lines = HeaderParser().parsestr(text).get_all("Requires-Dist", [])
        return cls(
            path=path,
            name=name,
            version=number,
            tags=tags,
            requires=tuple(Requirement(line) for line in lines),
        )


def root_requirements(pyproject: Path) -> list[Requirement]:
    """The dependencies of the package and those that its tests need besides."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extra = map(Requirement, project["optional-dependencies"]["dev"])
    tests = [each for each in extra if name_of(each) in TEST_PACKAGES]
    return [*map(Requirement, project["dependencies"]), *tests]


def name_of(requirement: Requirement) -> str:
    """The name in its normal form, "pydantic-core" for "pydantic_core"."""
    return canonicalize_name(requirement.name)


def read_pins(constraints: Path) -> dict[str, str]:
    """The versions of a constraints file by normal name."""
    pins = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, separator, number = line.partition("==")
        if separator and not line.startswith("#"):
            pins[str(canonicalize_name(name.strip()))] = number.strip()
    return pins


def walk(
    roots: Iterable[Requirement],
    *,
    is_there: Callable[[Requirement], bool],
    find: Callable[[Requirement], Wheel],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Wheel | MissingWheel]:
    """Each wheel that `roots` lead to, once; a requirement that none meets as well.

    What `is_there` is not looked into: its own requirements are its machine's.
    `environment` overrides the markers' variables, for another machine than this.
    """
    waiting = [each for each in roots if _applies(each, environment, {""})]
    taken: dict[str, Wheel] = {}
    while waiting:
        wanted = waiting.pop(0)
        if is_there(wanted):
            continue
        wheel = taken.get(name_of(wanted))
        try:
            if wheel is None:
                wheel = taken[name_of(wanted)] = find(wanted)
                yield wheel
            _check_version(wheel, wanted)
        except MissingWheel as error:
            yield error
            continue
        waiting += [
            each
            for each in wheel.requires
            if _applies(each, environment, {"", *wanted.extras}) and each not in waiting
        ]


def _applies(
    requirement: Requirement,
    environment: Mapping[str, str] | None,
    extras: Iterable[str],
) -> bool:
    if requirement.marker is None:
        return True
    return any(
        requirement.marker.evaluate({**(environment or {}), "extra": extra})
        for extra in extras
    )


def _check_version(wheel: Wheel, wanted: Requirement) -> None:
    if not wanted.specifier.contains(wheel.version, prereleases=True):
        raise MissingWheel(f"{wanted}: {wheel.path.name} does not satisfy it")


def is_left_out(requirement: Requirement) -> bool:
    """Whether the machine has it of its own, or has to."""
    return LEFT_OUT.fullmatch(name_of(requirement)) is not None


def is_installed(requirement: Requirement) -> bool:
    """Whether this Python has a version that satisfies `requirement`."""
    try:
        number = version(requirement.name)
    except PackageNotFoundError:
        return False
    return requirement.specifier.contains(number, prereleases=True)


def find_in(
    folder: Path, *, tags: Iterable[Tag] | None = None
) -> Callable[[Requirement], Wheel]:
    """A `find` among the wheels of `folder` that fit `tags`, this Python's by default.

    The newest one that satisfies the requirement is taken.
    """
    known = frozenset(sys_tags() if tags is None else tags)
    wheels = [Wheel.read(path) for path in sorted(folder.glob("*.whl"))]
    usable = [wheel for wheel in wheels if wheel.tags & known]

    def find(wanted: Requirement) -> Wheel:
        fitting = [
            wheel
            for wheel in usable
            if wheel.name == name_of(wanted)
            and wanted.specifier.contains(wheel.version, prereleases=True)
        ]
        if not fitting:
            raise MissingWheel(f"{wanted}: neither installed nor in {folder}")
        return max(fitting, key=lambda wheel: wheel.version)

    return find


def missing_here(pyproject: Path, folder: Path) -> tuple[list[Wheel], list[str]]:
    """The wheels of `folder` that this Python lacks, and what neither has."""
    roots = root_requirements(pyproject)
    found = list(walk(roots, is_there=is_installed, find=find_in(folder)))
    wheels = [each for each in found if isinstance(each, Wheel)]
    return wheels, [str(each) for each in found if not isinstance(each, Wheel)]
