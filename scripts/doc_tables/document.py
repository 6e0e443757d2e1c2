"""Tables that commands write into the docs, each between two marks of its own.

Knows text and marks, not the meaning of a table.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tabulate import tabulate

DOCS = Path(__file__).resolve().parents[2] / "docs"
PUBLISHED = Path(__file__).with_name("a100_reference.csv")
"""The table of torchao's former benchmark."""
Place: TypeAlias = tuple[Path, str, str]
"""A document and the two marks in it, each of which it has once."""
Key: TypeAlias = tuple[str, ...]
"""The first cells of a row, by which it is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table, its place, and the limits that its figures break, in words."""

    place: Place
    text: str
    problems: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTable:
    """A table whose rows are computed one by one.

    `draw` gets a row's key, and returns its other cells and the limits that its figures
    break.
    """

    place: Place
    headers: Sequence[str]
    keys: Collection[Key]
    draw: Callable[..., tuple[Sequence[str], Sequence[str]]]

    def documented(self) -> dict[Key, list[str]]:
        """The document's rows: each one's other cells by its key."""
        count = len(next(iter(self.keys)))
        rows = rows_between(*self.place)
        return {tuple(row[:count]): row[count:] for row in rows}

    def text(self, drawn: Mapping[Key, Sequence[str]]) -> str:
        """The document's table, with the rows in `drawn` replaced."""
        rows = {**self.documented(), **drawn}
        return github_table(((*key, *rows[key]) for key in self.keys), self.headers)

    def tables(self, names: Sequence[str]) -> list[Table]:
        """The table with the rows of `names`, or with all of them, computed anew."""
        chosen = select(names, dict.fromkeys(key[0] for key in self.keys))
        drawn, problems = {}, []
        for key in self.keys:
            if key[0] in chosen:
                # It takes seconds to minutes.
                print(*key, file=sys.stderr, flush=True)
                drawn[key], broken = self.draw(*key)
                problems += [f"{'.'.join(key)}: {problem}" for problem in broken]
        return [Table(place=self.place, text=self.text(drawn), problems=problems)]


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
    cells = list(map(list, rows))
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def select(names: Sequence[str], known: Collection[str]) -> list[str]:
    """The `names` in the order of `known`, or all; exits with a line for an unknown."""
    if missing := set(names) - set(known):
        sys.exit(f"no row of the table: {', '.join(sorted(missing))}")
    return [name for name in known if name in names or not names]
