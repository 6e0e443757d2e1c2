"""Tables between marks of a document: replaced and read, the rest as it was."""

from pathlib import Path

import pytest

from scripts.doc_tables import times_of_tests
from scripts.doc_tables.__main__ import main, tables
from scripts.doc_tables.document import Place, Table

BEFORE, AFTER = "before\n<!-- one: begin -->\n", "\n<!-- one: end -->\nafter\n"
AFTER += "<!-- two: begin -->\n| x |\n|---|\n| 9 |\n<!-- two: end -->\n"
CELLS = "| a   | b    |\n|-----|------|\n| x   | 1, 5 |\n| y   | 2    |"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "docs.md"
    path.write_text(f"{BEFORE}old{AFTER}", encoding="utf-8")
    return path


@pytest.fixture
def table(document: Path) -> Table:
    return Table(
        place=Place(str(document), "one"),
        headers=("a", "b"),
        keys=[("x",), ("y",)],
        draw=lambda key: ([f"new {key}"], ["too low"]),
    )


def test_what_stands_outside_the_marks_stays(document: Path, table: Table) -> None:
    words = f"Words first.\n\n{CELLS}"
    table.place.write(words)
    assert document.read_text(encoding="utf-8") == f"{BEFORE}{words}{AFTER}"
    assert table.place.read() == words
    assert table.documented() == {("x",): ["1, 5"], ("y",): ["2"]}


@pytest.mark.parametrize(
    "text", ["", BEFORE, AFTER, AFTER + BEFORE, 2 * (BEFORE + AFTER)]
)
def test_a_document_without_each_mark_once_is_left_as_it_is(
    text: str, document: Path, table: Table
) -> None:
    document.write_text(text, encoding="utf-8")
    for use in (table.place.read, lambda: table.place.write("lost")):
        with pytest.raises(ValueError, match="unpack"):
            use()
    assert document.read_text(encoding="utf-8") == text


def test_rows_that_are_named_are_computed_and_the_others_stay(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    table.place.write(CELLS)
    assert table.compute(["y"]) == ["y: too low"]
    assert table.place.read() == CELLS
    assert "| y   | new y |" in capsys.readouterr().out
    table.compute(["y"], write=True)
    assert table.documented() == {("x",): ["1, 5"], ("y",): ["new y"]}


def test_a_groups_seconds_are_the_sum_over_its_tests_that_ran(tmp_path: Path) -> None:
    cases = [("cli/a.py", 1.5, ""), ("cli/b.py", 2, ""), ("run/a.py", 4, "")]
    cases.append(("run/b.py", 8, "<skipped/>"))
    lines = (
        f'<testcase file="correctness/{file}" time="{seconds}">{inside}</testcase>'
        for file, seconds, inside in cases
    )
    results = tmp_path / "tests.xml"
    results.write_text(f"<testsuite>{''.join(lines)}</testsuite>")
    assert times_of_tests.times(results) == {"cli": [1.5, 2], "run": [4]}
    (table,) = tables("tests")
    assert list(table.documented()) == list(table.keys)


@pytest.mark.parametrize("text", [None, "", "<testsuite>"])
def test_without_results_it_says_which_command_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    results = tmp_path / "tests.xml"
    if text is not None:
        results.write_text(text, encoding="utf-8")
    monkeypatch.setattr(times_of_tests, "RESULTS", results)
    with pytest.raises(SystemExit, match="first: make test TEST_ARGS=--junit-xml="):
        main(["tests"])


@pytest.mark.parametrize("name", ["limits", "performance", "sizes"])
def test_the_document_has_what_is_computed(name: str) -> None:
    for table in tables(name):
        written = table.place.read()
        command = f"python -m scripts.doc_tables {name} --write"
        assert table.drawn() == (written, []), command
    with pytest.raises(SystemExit, match="no row of the table: absent"):
        main([name, "absent"])
