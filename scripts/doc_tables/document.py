"""Tables that commands write into the docs, each between two marks of its own.

Knows text and marks, not the meaning of a table.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tabulate import tabulate

from scripts import ROOT

DOCS = ROOT / "docs"
Key: TypeAlias = tuple[str, ...]
"""The first cells of a row, by which it is known."""


class Place(NamedTuple):
    """The text between two marks of a document in `docs/`: `name` begin and end.

    Reading and writing raise ValueError unless each mark is there once.
    """

    document: str
    name: str

    def read(self) -> str:
        """The text between the marks."""
        _, text, _ = self._parts()
        return text.strip()

    def write(self, text: str) -> None:
        """Put `text` between the marks."""
        head, _, tail = self._parts()
        parts = f"{head}\n{text}\n{tail}"
        (DOCS / self.document).write_text(parts, encoding="utf-8")

    def _parts(self) -> tuple[str, str, str]:
        """The document up to the first mark, between both, and from the second on."""
        begin, end = (f"<!-- {self.name}: {which} -->" for which in ("begin", "end"))
        head, rest = (DOCS / self.document).read_text(encoding="utf-8").split(begin)
        text, tail = rest.split(end)
        return head + begin, text, end + tail


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
        lines = [line for line in self.place.read().splitlines() if line[:1] == "|"]
        rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
        return {tuple(row[:count]): row[count:] for row in rows}

    def compute(self, names: Collection[str], *, write: bool = False) -> list[str]:
        """Print the table with the rows of `names`, or all, anew; the broken limits.

        The other rows keep the figures that stand in the document. `write` puts it
        there.
        """
        text, problems = self.drawn(names)
        print(text)
        if write:
            self.place.write(text)
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


def github_table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    """A markdown table of texts, as they are."""
    cells = list(map(list, rows))
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)
