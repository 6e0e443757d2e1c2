"""A run's results as text, markdown, JSON and CSV.

A module of this package that decorates a function with `report_format` adds a format,
by its name and by the suffix of the file it is written to: no other file has to name
it. Knows results and verdicts as they are stored; measures and judges nothing.
"""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from llama_perf.errors import SpecError
from llama_perf.files import check_writable, write_atomically
from llama_perf.report.columns import ALL, Layout
from llama_perf.results.run import Report
from llama_perf.strict_json import to_json

Draw = TypeVar("Draw", bound=Callable[..., str])
_BY_NAME: dict[str, Callable[..., str]] = {}
_BY_SUFFIX: dict[str, str] = {}
_WITH_COLUMNS: set[str] = set()


def report_format(
    name: str, suffix: str, *, has_columns: bool = False
) -> Callable[[Draw], Draw]:
    """Register a function that draws a report as the format `name`.

    A file that ends in `suffix`, such as ".md", is written by it. A format that
    `has_columns` gets the layout of its table as a second argument.
    """

    def register(draw: Draw) -> Draw:
        assert name not in _BY_NAME, f"two formats are named {name!r}"
        assert suffix not in _BY_SUFFIX, f"two formats have the suffix {suffix!r}"
        _BY_NAME[name], _BY_SUFFIX[suffix] = draw, name
        if has_columns:
            _WITH_COLUMNS.add(name)
        return draw

    return register


# The document that a run writes, to be read again.
report_format("json", ".json")(to_json)


def names() -> list[str]:
    """The names of all formats."""
    return sorted(_BY_NAME)


def suffixes() -> list[str]:
    """The suffixes of files that a report can be written to."""
    return sorted(_BY_SUFFIX)


def has_columns(name: str) -> bool:
    """Whether the format `name` draws a table whose columns can be chosen."""
    return name in _WITH_COLUMNS


def draw(report: Report, name: str, layout: Layout = ALL) -> str:
    """The report in the format `name`; raises SpecError where there is none."""
    if name not in names():
        allowed = f"allowed: {', '.join(names())}"
        raise SpecError("format", name, allowed, known=names())
    more = [layout] if has_columns(name) else []
    return _BY_NAME[name](report, *more)


def check_path(path: Path) -> None:
    """Raise SpecError unless a report can be written to `path`."""
    if path.suffix not in suffixes():
        allowed = f"allowed: a file that ends in {', '.join(suffixes())}"
        raise SpecError("report", str(path), allowed)
    check_writable("report", path)


def write(report: Report, path: Path, layout: Layout = ALL) -> None:
    """Write the report to `path`, which is checked, in the format of its suffix.

    Raises WriteError.
    """
    write_atomically(path, draw(report, _BY_SUFFIX[path.suffix], layout))


# Each module registers its formats.
for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
