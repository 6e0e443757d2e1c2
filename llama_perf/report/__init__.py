"""What is measured as documents: text, markdown, HTML, JSON and CSV.

A module of this package that decorates a function with `report_format` adds a format
of one kind of document, such as a run's results. The format has a name and the suffix
of the file it is written to: no other file has to name it. Knows results and verdicts
as they are stored; measures and judges nothing.
"""

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from llama_perf.errors import SpecError, WriteError, one_line
from llama_perf.files import check_apart, check_writable, write_atomically
from llama_perf.report.columns import ALL, Layout
from llama_perf.results.run import Report
from llama_perf.strict_json import to_json
from llama_perf.words import printable

Draw = TypeVar("Draw", bound=Callable[..., str])


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How one kind of document is drawn, and the modules that this needs."""

    name: str
    suffix: str
    draw: Callable[..., str]
    has_columns: bool
    needs: tuple[str, ...]

    def check(self, field: str, value: str) -> None:
        """Raise SpecError that names the field where a library is not installed."""
        for module in self.needs:
            if find_spec(module) is None:
                reason = f"{self.name} needs {module}, which is not installed"
                install = f"pip install 'llama-perf[{self.name}]'"
                raise SpecError(field, value, f"{reason}: {install}")


_FORMATS: dict[type, list[Format]] = {}


def report_format(
    name: str,
    suffix: str,
    *,
    of: type = Report,
    has_columns: bool = False,
    needs: tuple[str, ...] = (),
) -> Callable[[Draw], Draw]:
    """Register a function that draws a document of the type `of` as the format `name`.

    A file that ends in `suffix`, such as ".md", is written by it. A format that
    `has_columns` gets the layout of its table as a second argument. `needs` are modules
    of the optional packages in the extra of the format's name.
    """

    def register(draw: Draw) -> Draw:
        known = _FORMATS.setdefault(of, [])
        for one in known:
            assert one.name != name, f"two formats are named {name!r}"
            assert one.suffix != suffix, f"two formats have the suffix {suffix!r}"
        known.append(
            Format(
                name=name,
                suffix=suffix,
                draw=draw,
                has_columns=has_columns,
                needs=needs,
            )
        )
        return draw

    return register


# The document that a run writes, to be read again.
report_format("json", ".json")(to_json)


def names(of: type = Report) -> list[str]:
    """The names of all formats of a type of document."""
    return sorted(known.name for known in _FORMATS[of])


def suffixes(of: type = Report) -> list[str]:
    """The suffixes of files that such a document can be written to."""
    return sorted(known.suffix for known in _FORMATS[of])


def format_named(name: str, of: type = Report) -> Format:
    """The format; raises SpecError where there is none, or where it lacks a library."""
    for known in _FORMATS[of]:
        if known.name == name:
            known.check("format", name)
            return known
    allowed = f"allowed: {', '.join(names(of))}"
    raise SpecError("format", name, allowed, known=names(of))


def draw(document: Any, name: str, layout: Layout = ALL) -> str:
    """The document in the format `name`; raises SpecError as `format_named` does."""
    return _drawn(document, format_named(name, type(document)), layout)


def _drawn(document: Any, form: Format, layout: Layout) -> str:
    text = form.draw(document, *([layout] if form.has_columns else []))
    if form.suffix == ".html":
        # Nothing steers it, and its library has such characters.
        return text
    if form.suffix == ".md":
        # Markdown may hold HTML, and none of it would be ours.
        text = text.replace("<", "&lt;")
    return printable(text)


def check_path(path: Path, of: type = Report) -> None:
    """Raise SpecError unless such a document can be written to `path`."""
    format_of(path, of).check("report", str(path))
    check_writable("report", path)


def check_paths(
    paths: Sequence[Path], of: type = Report, *, others: Iterable[tuple[str, Path]] = ()
) -> None:
    """Raise SpecError unless such a document can be written to each of `paths`.

    Each is a file of its own: none of `others`, which say in words what each is.
    """
    for path in paths:
        check_path(path, of)
    check_apart([("report", path) for path in paths], others)


def write(document: Any, path: Path, layout: Layout = ALL) -> None:
    """Write the document to `path`, which is checked, in the format of its suffix.

    Raises WriteError.
    """
    form = format_of(path, type(document))
    write_atomically(path, _drawn(document, form, layout))


def write_all(document: Any, paths: Iterable[Path], layout: Layout = ALL) -> list[str]:
    """Write the document to `paths`, which are checked, each in its suffix's format.

    Returns a line for each file that cannot be written. What a format cannot draw costs
    its file only: the other files, and what is printed, may have hours of measuring.
    """
    problems = []
    for path in paths:
        try:
            write(document, path, layout)
        except WriteError as error:
            problems.append(str(error))
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            problems.append(f"{path}: cannot be drawn: {reason}")
    return problems


def format_of(path: Path, of: type = Report) -> Format:
    """The format of a file's suffix; raises SpecError where there is none."""
    for known in _FORMATS[of]:
        if known.suffix == path.suffix:
            return known
    allowed = f"allowed: a file that ends in {', '.join(suffixes(of))}"
    raise SpecError("report", str(path), allowed)


# Each module registers its formats.
for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
