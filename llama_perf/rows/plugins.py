"""What installed packages add: schemes and sets of rows, by their entry points.

Reads what packages say of themselves and imports none of them. `OFF` in the
environment leaves them all out.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_perf.errors import RecordError, SpecError

SCHEMES, SETS = "llama_perf.schemes", "llama_perf.rows"
"""The groups of entry points."""
OFF = "LLAMA_PERF_NO_PLUGINS"
NAME = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
"""A name as it stands in a row's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a package adds under a name; `package` is its name and its version."""

    group: str
    name: str
    package: str
    entry_point: EntryPoint

    @property
    def place(self) -> str:
        """The package, and where in it: "my-package 1.0 (my_package:SCHEME)"."""
        return f"{self.package} ({self.entry_point.value})"

    def load(self) -> Any:
        """Import what the entry point names; raises what the package raises."""
        return self.entry_point.load()

    @property
    def parts(self) -> tuple[str, str]:
        """The module and what of it is named, "a.b:c" being "a.b" and "c"."""
        module, _, name = self.entry_point.value.partition(":")
        return module.strip(), name.strip()

    @property
    def module_package(self) -> str:
        """The package that is imported."""
        return self.parts[0].partition(".")[0]

    @property
    def home(self) -> Path | None:
        """Where the package is, as `home_of` has it."""
        return home_of(self.module_package)


def home_of(package: str) -> Path | None:
    """The folder of a package that can be imported, or the file of a module, or None.

    Found without importing it.
    """
    spec = None
    # Of a name that is none.
    with suppress(ValueError, ImportError):
        spec = find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    return None if spec.origin is None else Path(spec.origin)


def offers(group: str) -> tuple[Offer, ...]:
    """All that installed packages add to a group, ordered by name and package."""
    return () if os.environ.get(OFF) else _offers(group, tuple(sys.path))


@cache
def _offers(group: str, _path: tuple[str, ...]) -> tuple[Offer, ...]:
    found = []
    for entry_point in entry_points(group=group):
        dist = entry_point.dist
        assert dist is not None, "entry points of installed packages have one"
        package = f"{dist.name} {dist.version}"
        found.append(
            Offer(
                group=group,
                name=entry_point.name,
                package=package,
                entry_point=entry_point,
            )
        )
    return tuple(sorted(found, key=lambda offer: (offer.name, offer.package)))


def problem_of(offer: Offer, is_built_in: Callable[[str], bool]) -> str | None:
    """Why an offer is refused, None where it is not."""
    name = offer.name
    if not NAME.fullmatch(name):
        form = "a name has letters and digits, and single - between them"
        return f"{offer.place} offers it, and {form}"
    others = [other.place for other in offers(offer.group) if other.name == name]
    if is_built_in(name):
        others.insert(0, "llama-perf itself")
    if len(others) > 1:
        return f"it is in two packages, {others[0]} and {others[1]}: uninstall one"
    return None


def usable(group: str, is_built_in: Callable[[str], bool]) -> Iterator[Offer]:
    """The offers that are not refused."""
    return (one for one in offers(group) if problem_of(one, is_built_in) is None)


def offered(
    group: str, name: object, is_built_in: Callable[[str], bool], *, field: str
) -> Offer | None:
    """What is added under `name`, or None; raises SpecError where it is refused."""
    for offer in offers(group):
        if offer.name == name:
            if (problem := problem_of(offer, is_built_in)) is not None:
                raise SpecError(field, name, problem)
            return offer
    return None


def rows_file(offer: Offer) -> Path:
    """The TOML file of a set, "package:file.toml"; raises RecordError."""
    module, name = offer.parts
    _, *inner = module.split(".")
    if offer.home is not None and name.endswith(".toml"):
        path = offer.home.joinpath(*inner, name)
        if path.is_file():
            return path
    need = "write it as `NAME = 'package:file.toml'`, a file in that package's folder"
    raise RecordError(f"set {offer.name} of {offer.place}: no such file; {need}")
