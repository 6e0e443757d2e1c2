"""Tables that commands write into the docs, each between two marks of its own.

Knows text and marks, not what a table means.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

DOCS = Path(__file__).resolve().parents[2] / "docs"
Place: TypeAlias = tuple[Path, str, str]
"""A document and the two marks in it, each of which it has once."""


def place(document: str, name: str) -> Place:
    """The place of the table `name` in `docs/`."""
    return DOCS / document, f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_between(document: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between the two marks, each of which the document has once."""
    head, rest = document.read_text(encoding="utf-8").split(begin)
    tail = rest.split(end)[1]
    whole = f"{head}{begin}\n{text}\n{end}{tail}"
    document.write_text(whole, encoding="utf-8")


def text_between(document: Path, begin: str, end: str) -> str:
    """What stands between the two marks."""
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
