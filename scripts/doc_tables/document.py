"""Tables that commands write into the docs, each between two marks of its own.

Knows text and marks, not the meaning of a table.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tabulate import tabulate

from scripts import ROOT

DOCS = ROOT / "docs"
PUBLISHED = Path(__file__).with_name("a100_reference.csv")
"""The table of torchao's former benchmark."""
Place: TypeAlias = tuple[Path, str, str]
"""A document and the two marks in it, each of which it has once."""
Key: TypeAlias = tuple[str, ...]
"""The first cells of a row, by which it is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
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

    def compute(self, names: Collection[str], *, write: bool = False) -> list[str]:
        """Print the table with the rows of `names`, or all, anew; the broken limits.

        The other rows keep the figures that stand in the document. `write` puts it
        there.
        """
        text, problems = self.drawn(names)
        print(text)
        if write:
            replace_between(*self.place, text)
        return problems

    def drawn(self, names: Collection[str] = ()) -> tuple[str, list[str]]:
        """The text of that table, and the limits that its new figures break."""
        rows: dict[Key, Sequence[str]] = {**self.documented()}
        problems = []
        for key in self.keys:
            if key[0] in names or not names:
                # It takes seconds to minutes.
                print(*key, file=sys.stderr, flush=True)
                rows[key], broken = self.draw(*key)
                problems += [f"{'.'.join(key)}: {problem}" for problem in broken]
        cells = ((*key, *rows[key]) for key in self.keys)
        return github_table(cells, self.headers), problems


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
