"""Tables that commands write into the docs, each between two marks of its own.

Knows text and marks, not the meaning of a table.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tabulate import tabulate

DOCS = Path(__file__).resolve().parents[2] / "docs"
PUBLISHED = Path(__file__).with_name("a100_reference.csv")
"""The table of torchao's former benchmark."""
Place: TypeAlias = tuple[Path, str, str]
"""A document and the two marks in it, each of which it has once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table, its place, and the limits that its figures break, in words."""

    place: Place
    text: str
    problems: Sequence[str] = ()


def place(document: str, name: str) -> Place:
    """The place of the table `name` in `docs/`."""
    return DOCS / document, f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_between(document: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between the two marks; raises ValueError unless each is there once."""
    head, rest = document.read_text(encoding="utf-8").split(begin)
    _, tail = rest.split(end)
    document.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def text_between(document: Path, begin: str, end: str) -> str:
    """The text between the two marks."""
    text = document.read_text(encoding="utf-8")
    return text.partition(begin)[2].partition(end)[0].strip()


def rows_between(document: Path, begin: str, end: str) -> list[list[str]]:
    """The cells of the table between the two marks, row by row, without its head."""
    lines = text_between(document, begin, end).splitlines()
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return rows[2:]


def github_table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    """A markdown table of texts, as they are."""
    return tabulate(
        [list(row) for row in rows],
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
    )


def select(names: Sequence[str], known: Collection[str]) -> list[str]:
    """The `names` in the order of `known`, or all; exits with a line for an unknown."""
    if missing := set(names) - set(known):
        sys.exit(f"no row of the table: {', '.join(sorted(missing))}")
    return [name for name in known if name in names or not names]


def show_progress(text: str) -> None:
    """Print what is computed now, which takes seconds to minutes."""
    print(text, file=sys.stderr, flush=True)
