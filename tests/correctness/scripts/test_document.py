"""Tables between marks of a document: replaced and read, the rest as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.doc_tables.document import replace_between, rows_between, text_between

BEGIN, END = "<!-- one: begin -->", "<!-- one: end -->"
OTHER = "<!-- two: begin -->\n| x |\n|---|\n| 9 |\n<!-- two: end -->\n"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "docs.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n{OTHER}", encoding="utf-8")
    return path


def test_what_stands_outside_the_marks_stays(document: Path) -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4, 5 |"
    replace_between(document, BEGIN, END, f"Words first.\n\n{table}")
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\nWords first.")
    assert text.endswith(f"| 4, 5 |\n{END}\nafter\n{OTHER}")
    assert text_between(document, BEGIN, END) == f"Words first.\n\n{table}"
    assert rows_between(document, BEGIN, END) == [["1", "2"], ["3", "4, 5"]]


def test_a_document_without_the_marks_has_nothing_between_them(document: Path) -> None:
    assert text_between(document, "<!-- no -->", END) == ""
    assert rows_between(document, "<!-- no -->", END) == []
    with pytest.raises(ValueError, match="unpack"):
        replace_between(document, "<!-- no -->", END, "lost")
    assert "old" in document.read_text(encoding="utf-8")
