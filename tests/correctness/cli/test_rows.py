"""`llama-perf rows`: which rows there are, without running or importing anything."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llama_perf.cli.main import main
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, ROWS
from tests.correctness.support.processes import HANG_S

ROOT = Path(__file__).resolve().parents[3]


def table(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["rows", *options]) == 0
    return capsys.readouterr().out.splitlines()


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    """The objects of `--json`."""
    assert main(["rows", "--json", *options]) == 0
    objects: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return objects


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    path = tmp_path / "rows.toml"
    path.write_text(ROWS, encoding="utf-8")
    return str(path)


def test_the_table_has_a_line_for_each_row(
    capsys: pytest.CaptureFixture[str], rows_file: str
) -> None:
    header, _, *lines, last = table(capsys, "--rows", rows_file)
    names = ["id", "model", "quantization", "kernels", "dtype", "device", "cache"]
    names.append("built")
    assert header.split() == names
    assert [line.split() for line in lines] == [
        [PLAIN, "tiny", "none", "native", "float32", "cpu", "10", "yes"],
        [INT8, "tiny", "int8wo", "torchao", "float32", "cpu", "10", "yes"],
        [FP6, "tiny", "fp6", "torchao", "float32", "cpu", "10", "no"],
    ]
    assert last == "3 rows"


def test_json_has_the_fields_of_a_row_and_reads_back(
    capsys: pytest.CaptureFixture[str], rows_file: str
) -> None:
    objects = listed(capsys, "--rows", rows_file)
    names = ["id", *(field.name for field in fields(RowSpec)), "built"]
    assert all(list(row) == names for row in objects)
    assert [row["quantization"] for row in objects] == [None, "int8wo", "fp6"]
    assert {row["dtype"] for row in objects} == {"float32"}
    assert objects[0]["compile"] is False
    for row in objects:
        row_id, built = row.pop("id"), row.pop("built")
        assert built == (row["quantization"] != "fp6")
        assert RowSpec(**row).id == row_id


def test_the_reference_set_has_its_43_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert table(capsys, "--set", "reference")[-1] == "43 rows"
    objects = listed(capsys, "--set", "reference")
    ids = [row["id"] for row in objects]
    assert ids == [row.id for row in selection.load_set("reference")]
    assert len(set(ids)) == 43
    built = {row["quantization"] for row in objects if row["built"]}
    assert built == {row["quantization"] for row in objects}


def test_without_a_set_every_row_stands_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = [
        row.id for name in selection.set_names() for row in selection.load_set(name)
    ]
    ids = [row["id"] for row in listed(capsys)]
    assert sorted(ids) == sorted(set(every))
    assert len(every) > len(ids), "no row stands in two sets, so nothing was checked"


def test_globs_choose_rows_and_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    ids = [row.id for row in selection.load_set("reference")]
    wanted = [row_id for row_id in ids if fnmatch.fnmatchcase(row_id, "*int8wo*")]
    assert 0 < len(wanted) < len(ids)
    options = ("--set", "reference", "--row", "*int8wo*")
    assert [row["id"] for row in listed(capsys, *options)] == wanted
    more = listed(capsys, *options, "--row", ids[0], "--row", ids[0])
    assert [row["id"] for row in more] == [
        row_id for row_id in ids if row_id in {*wanted, ids[0]}
    ]
    every_set = {row["device"] for row in listed(capsys, "--row", "*.none.*")}
    assert every_set == {"cpu", "cuda"}


def test_listing_rows_imports_no_torch() -> None:
    code = (
        "import sys; from llama_perf.cli.main import main;"
        "main(['rows', '--set', 'cpu']);"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )
    imported = done.stdout.splitlines()[-1]
    assert "'llama_perf'" in imported
    for name in ("torch", "torchao", "transformers", "sentencepiece"):
        assert f"'{name}'" not in imported
