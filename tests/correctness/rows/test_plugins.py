"""What installed packages add to the names of schemes and sets."""

import json
from pathlib import Path

import pytest

from llama_perf.errors import RecordError, SchemeError
from llama_perf.quantize.plugins import own_scheme
from llama_perf.rows import plugins, selection
from llama_perf.rows.schemes import OWN, Scheme, check_one_package
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import from_json, to_line
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.errors import refusal
from tests.correctness.support.packages import Install, installer

ROWS = """
[[row]]
model = "stories15M"
quantization = "third-bits"

[[row]]
model = "stories15M"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    return installer(tmp_path, monkeypatch)


@pytest.fixture
def _some_bits(install: Install) -> None:
    """A package whose import fails: nothing here may import it."""
    install(
        "some-bits",
        schemes={"third-bits": "some_bits.scheme:THIRD"},
        sets={"bits": "some_bits:rows.toml", "lost": "some_bits:lost.toml"},
        files={"__init__.py": "raise RuntimeError", "rows.toml": ROWS},
    )


@pytest.mark.usefixtures("_some_bits")
def test_a_scheme_of_a_package_is_a_name_for_rows() -> None:
    assert Scheme.parse("third-bits").family == OWN
    row = RowSpec(model="7B", quantization="third-bits", fused=True)
    assert row.kernels == "own"
    assert row.id == "7b.third-bits.own.bf16.eager.fused"
    message = refusal(Scheme.parse, "third-bit")
    assert "did you mean third-bits?" in message
    assert message.endswith("), third-bits")


@pytest.mark.usefixtures("_some_bits")
def test_a_stored_row_is_read_without_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = RowSpec(model="7B", quantization="third-bits")
    line = to_line(row)
    monkeypatch.setenv(plugins.OFF, "1")
    stored = from_json(RowSpec, line, source="stored")
    assert stored == row
    assert (stored.id, stored.scheme) == (row.id, "third-bits")
    with pytest.raises(RecordError, match="'third-bits' is not allowed"):
        from_json(RowSpec, line.replace('"own"', '"native"'), source="stored")
    with pytest.raises(RecordError, match="'third bits' is not allowed"):
        from_json(RowSpec, line.replace("third-bits", "third bits"), source="stored")


@pytest.mark.usefixtures("_some_bits")
def test_a_set_of_a_package_is_read_without_importing_it(cli: CommandLine) -> None:
    rows = selection.load_set("bits")
    assert [row.kernels for row in rows] == ["own", "native"]
    assert RunRequest(set="bits").selected() == rows
    assert {row.id for row in rows} <= {row.id for row in selection.every_row()}
    place = "some-bits 1.0 (some_bits:rows.toml)"
    out, _ = cli("rows", "--set", "bits")
    assert out.endswith(f"2 rows\nset bits: from {place}\n")
    out, notes = cli("rows", "--set", "bits", "--json")
    assert len(json.loads(out)) == 2
    assert notes == f"set bits: from {place}\n"
    listed = cli("rows")[0].splitlines()
    assert listed[-2] == f"set bits: from {place}"
    assert listed[-1].startswith("set lost: not listed: set lost of some-bits 1.0 (")
    assert listed[-1].endswith("a file in that package's folder")
    assert "some-bits" not in cli("rows", "--set", "cpu")[0]
    message = cli.refusal("rows", "--set", "bit")
    assert message.startswith("set: 'bit' is not allowed; did you mean bits? ")


@pytest.mark.parametrize(
    "value", ["rows.toml", "odd:rows", "odd.sub:rows.toml", "not a module:x.toml", ":"]
)
def test_a_set_that_is_written_wrongly_costs_no_other(
    install: Install, cli: CommandLine, value: str
) -> None:
    install("odd", sets={"odd-rows": value}, schemes={"odd": value})
    message = refusal(selection.load_set, "odd-rows", error=RecordError)
    assert message == (
        f"set odd-rows of odd 1.0 ({value}): no such file; write it as"
        " `NAME = 'package:file.toml'`, a file in that package's folder"
    )
    assert f"set odd-rows: not listed: {message}" in cli("rows")[0]
    assert "cannot be imported: " in refusal(own_scheme, "odd", error=SchemeError)


def test_a_wrong_row_of_a_package_is_named_with_its_package(install: Install) -> None:
    wrong = {"rows.toml": "[[row]]\nmodel = '7B'\nquantization = 'third-bit'\n"}
    install("other", sets={"others": "other:rows.toml"}, files=wrong)
    message = refusal(selection.load_set, "others", error=RecordError)
    place = "set others of other 1.0 (other:rows.toml): row 1: quantization"
    assert message.startswith(place)
    # It costs no other set.
    assert selection.every_row()


@pytest.mark.usefixtures("_some_bits")
def test_two_packages_with_one_name_are_both_named(
    install: Install, cli: CommandLine
) -> None:
    own = {"third-bits": "zeros:Z", "fp6": "zeros:Z", "uintx-9-9": "zeros:Z"}
    sets = {"bits": "zeros:r.toml", "cpu": "zeros:r.toml"}
    install("zeros", schemes=own | {"a_b": "zeros:Z"}, sets=sets)
    both = "some-bits 1.0 (some_bits.scheme:THIRD) and zeros 1.0 (zeros:Z)"
    assert refusal(Scheme.parse, "third-bits") == (
        f"quantization: 'third-bits' is not allowed; it is in two packages, {both}:"
        " uninstall one"
    )
    ours = "it is in two packages, llama-perf itself and zeros 1.0 (zeros:Z)"
    for name in ("fp6", "uintx-9-9"):
        assert ours in refusal(check_one_package, name)
    # Stored rows of built-in schemes are read all the same.
    assert Scheme.parse("fp6").family == "fp6"
    assert "offers it, and a name has letters" in refusal(Scheme.parse, "a_b")
    message = cli.refusal("rows", "--set", "bits")
    assert "some-bits 1.0 (some_bits:rows.toml) and zeros 1.0 (zeros:r.toml)" in message
    message = cli.refusal("run", "--set", "cpu")
    assert "llama-perf itself and zeros 1.0 (zeros:r.toml): uninstall one" in message
    assert selection.every_row()


@pytest.mark.usefixtures("_some_bits")
def test_packages_may_be_left_out(
    monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    with_them = cli("rows")[0]
    monkeypatch.setenv(plugins.OFF, "1")
    without = cli("rows")[0]
    assert "some-bits" in with_them
    assert "some-bits" not in without
    assert "'bits' is not allowed" in refusal(selection.load_set, "bits")
