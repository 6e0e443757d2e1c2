"""Tables between marks of a document: replaced and read, the rest as it was."""

from pathlib import Path

import pytest

from scripts.doc_tables import document as documents
from scripts.doc_tables.__main__ import main, tables
from scripts.doc_tables.document import Table, replace_between, text_between

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
    assert documents.rows_between(document, BEGIN, END) == [["1", "2"], ["3", "4, 5"]]
    # Without the marks there is nothing between them.
    assert text_between(document, "<!-- no -->", END) == ""
    assert documents.rows_between(document, "<!-- no -->", END) == []
    with pytest.raises(ValueError, match="unpack"):
        replace_between(document, "<!-- no -->", END, "lost")
    assert document.read_text(encoding="utf-8") == text


def test_rows_that_are_named_are_computed_and_the_others_stay(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(
        place=(document, BEGIN, END),
        headers=("a", "b"),
        keys=[("x",), ("y",)],
        draw=lambda key: ([f"new {key}"], ["too low"]),
    )
    before = "| a | b |\n|---|---|\n| x | 1 |\n| y | 2 |"
    replace_between(*table.place, before)
    assert table.compute(["y"]) == ["y: too low"]
    assert text_between(*table.place) == before
    assert "| y   | new y |" in capsys.readouterr().out
    table.compute(["y"], write=True)
    assert table.documented() == {("x",): ["1"], ("y",): ["new y"]}


@pytest.mark.parametrize("name", ["limits", "performance", "sizes"])
def test_the_document_has_what_is_computed(name: str) -> None:
    for table in tables(name):
        written = text_between(*table.place)
        command = f"python -m scripts.doc_tables {name} --write"
        assert table.drawn() == (written, []), command
    with pytest.raises(SystemExit, match="no row of the table: absent"):
        main([name, "absent"])
