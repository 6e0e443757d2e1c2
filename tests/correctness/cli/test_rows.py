"""`llama-perf rows`: which rows there are, without running or importing anything."""

import fnmatch
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, ROOT, ROWS
from tests.correctness.support.processes import HANG_S


def listed(cli: CommandLine, *options: str) -> list[dict[str, Any]]:
    """The objects of `--json`."""
    objects: list[dict[str, Any]] = json.loads(cli("rows", "--json", *options)[0])
    return objects


def test_the_table_has_lines_and_json_fields(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(ROWS, encoding="utf-8")
    header, _, *lines, last = cli("rows", "--rows", str(path))[0].splitlines()
    assert header.split() == [
        *("id", "model", "quantization", "kernels", "dtype", "device", "cache", "built")
    ]
    assert [line.split() for line in lines] == [
        [PLAIN, "tiny", "none", "native", "float32", "cpu", "10", "yes"],
        [INT8, "tiny", "int8wo", "torchao", "float32", "cpu", "10", "yes"],
        [FP6, "tiny", "fp6", "torchao", "float32", "cpu", "10", "no"],
    ]
    assert last == "3 rows"
    objects = listed(cli, "--rows", str(path))
    names = ["id", *(field.name for field in fields(RowSpec)), "built"]
    assert all(list(row) == names for row in objects)
    built = {row.pop("id"): row.pop("built") for row in objects}
    assert built == {PLAIN: True, INT8: True, FP6: False}
    assert objects[0]["compile"] is False
    assert [RowSpec(**row) for row in objects] == selection.load_file(path)


def test_of_several_ranks_the_sizes_are_one_s_and_those_of_all(
    cli: CommandLine,
) -> None:
    options = ("--set", "tensor-parallel", "--row", "*70b.none.*tp-8*", "--predict")
    for row in listed(cli, *options):
        own, every = row["model_size_gb"], row["model_size_gb_of_all"]
        assert every == pytest.approx(8 * own, rel=1e-4)
        assert row["peak_mem_gb_of_all"] == pytest.approx(8 * row["peak_mem_gb"])
    header, *_, note = cli("rows", *options)[0].splitlines()
    assert header.split()[-2:] == ["model_size_gb_of_all", "peak_mem_gb_of_all"]
    assert note == (
        "of several ranks (tp-N) model_size_gb and peak_mem_gb are one rank's"
    )
    alone = listed(cli, "--set", "cpu", "--row", "*none*", "--predict")
    assert not any("peak_mem_gb_of_all" in row for row in alone)


def test_globs_choose_among_the_43_rows_of_the_reference(cli: CommandLine) -> None:
    reference = ("--set", "reference")
    assert cli("rows", *reference)[0].splitlines()[-1] == "43 rows"
    objects = listed(cli, *reference)
    built = {row["quantization"] for row in objects if row["built"]}
    assert built == {row["quantization"] for row in objects}
    ids = [row["id"] for row in objects]
    assert ids == [row.id for row in selection.load_set("reference")]
    assert len(set(ids)) == 43
    wanted = fnmatch.filter(ids, "*int8wo*")
    assert 0 < len(wanted) < len(ids)
    options = (*reference, "--row", "*int8wo*")
    assert [row["id"] for row in listed(cli, *options)] == wanted
    more = listed(cli, *options, "--row", ids[0], "--row", ids[0])
    assert [row["id"] for row in more] == [
        row_id for row_id in ids if row_id in {*wanted, ids[0]}
    ]


def test_without_a_set_every_row_stands_once(cli: CommandLine) -> None:
    every = [row.id for one in selection.set_names() for row in selection.load_set(one)]
    ids = [row["id"] for row in listed(cli)]
    assert sorted(ids) == sorted(set(every))
    assert len(every) > len(ids), "no row stands in two sets, so nothing was checked"
    devices = {row["device"] for row in listed(cli, "--row", "*.none.*")}
    assert devices == {"cpu", "cuda"}


def test_listing_rows_imports_no_torch() -> None:
    code = (
        "import sys; from llama_perf.cli.main import main;"
        "main(['rows', '--set', 'cpu']);"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, text=True, timeout=HANG_S
    )
    imported = set(output.splitlines()[-1].split())
    assert "llama_perf" in imported
    assert not imported & {"torch", "torchao", "transformers", "sentencepiece"}
