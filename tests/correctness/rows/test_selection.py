import csv
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.measure.prepare import predict_row
from llama_perf.results import baselines
from llama_perf.rows import selection
from llama_perf.rows.choices import DEVICES
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from llama_perf.run.numbers import FINITE
from tests.correctness.support.errors import refusal

# The table of torchao's former benchmark.
PUBLISHED = Path(__file__).parents[1] / "support" / "a100_reference.csv"


def peak_gb(row: RowSpec) -> float:
    return predict_row(row).peak_bytes / 1e9


def published() -> list[dict[str, str]]:
    with PUBLISHED.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def schemes_of_the_table() -> set[str]:
    return {line["quantization"] or "none" for line in published()}


def test_the_reference_and_published_sets_are_the_table_row_by_row() -> None:
    listed = load_set("reference")
    table = published()
    assert len(listed) == len(table) == 43
    names = ["model", "quantization", "dtype", "compile", "compile_prefill"]
    names += ["kv_cache_quantization", "linear_causal_mask", "cache_size"]
    names += ["num_samples", "max_new_tokens", "top_k", "temperature"]
    for row, line in zip(listed, table, strict=True):
        for name in names:
            value = getattr(row, name)
            assert line[name] == ("" if value is None else str(value)), name
        assert (row.device, row.kernels) == ("cuda", "native")
        assert (row.fill, row.batch_size, row.prompt_length) == (0, 1, 6)
    for row, asked in zip(load_set("published"), listed, strict=True):
        assert row.reference_key == asked.reference_key
        is_torchaos = row.quantization in {"int8wo", "int8dq", "int4wo-64"}
        assert row.kernels == ("torchao" if is_torchaos else "native")
        assert (row.attention, row.fused) == ("sdpa", False)
        assert row.capture == row.compile


def test_the_default_set_of_a_card_is_short_and_fits_a_small_one() -> None:
    assert set(DEVICES) <= set(selection.set_names())
    listed = load_set("cuda")
    assert 15 <= len(listed) <= 22
    fused = {row.quantization or "none" for row in listed if row.fused}
    assert fused >= schemes_of_the_table() - {"autoquant-int4"}
    literal = [row for row in listed if row.attention == "sdpa"]
    asked = {(scheme, True) for scheme in (None, "int8wo", "int4wo-64")}
    asked.add((None, False))
    assert {(row.quantization, row.compile) for row in literal} == asked
    # On an H200 the compiler searches for two minutes in each of these.
    searched = [row for row in listed if row.compile and not row.fused]
    assert searched == listed[-3:]
    assert any(row.fill > 8192 for row in listed)
    assert {"Meta-Llama-3-8B", "Llama-3.2-1B"} <= {row.model for row in listed}
    large = [row for row in listed if peak_gb(row) > 23]
    assert [row.dtype for row in large] == ["float32"]


def test_few_published_rows_are_beyond_a_card_of_24_gb() -> None:
    large = [row for row in load_set("published") if peak_gb(row) > 23.6]
    assert {row.dtype for row in large if row.cache_size is None} == {"float32"}
    assert {row.cache_size for row in large} == {None, 65536, 131072}


def test_the_reference_device_holds_the_published_figures() -> None:
    path = baselines.path_of(baselines.baselines_folder(), baselines.REFERENCE_KEY)
    stored = baselines.read(path).rows
    for row, line in zip(stored, published(), strict=True):
        figures = row.measurement
        assert figures.tok_s == float(line["tok_s"])
        assert figures.bandwidth_gb_s == float(line["mem_gb_s"])
        assert figures.device_bandwidth_gb_s == 2039.0
        assert figures.peak_memory_bytes == round(float(line["peak_mem_gb"]) * 1e9)
        assert figures.model_size_bytes == round(float(line["model_size_gb"]) * 1e9)
    keys = {row.reference_key for row in load_set("reference")}
    assert keys == baselines.reference(baselines.baselines_folder()).keys()


def test_every_set_loads_and_no_id_stands_in_two_sets() -> None:
    # But for those that are mostly a choice of the others' rows.
    chosen = {"cuda", "cuda-check", "peers"}
    names = set(selection.set_names()) - chosen
    every = [row for name in sorted(names) for row in load_set(name)]
    assert {"reference", "cpu"} <= set(selection.set_names())
    work = {row.id: row.fingerprint for row in every}
    assert len(work) == len(every)
    for name in chosen:
        for row in load_set(name):
            assert work.get(row.id, row.fingerprint) == row.fingerprint


def test_every_row_of_torchao_has_a_native_twin() -> None:
    def work(rows: list[RowSpec], kernels: str) -> set[tuple[Any, ...]]:
        some = [row for row in rows if row.kernels == kernels]
        return {(row.model, row.quantization, row.dtype, row.compile) for row in some}

    both = load_set("torchao")
    torchao = work(both, "torchao")
    # A scheme that is built on torchao only has no twin.
    twins = {row for row in torchao if "native" in Scheme.parse(row[1]).kernels}
    assert twins
    assert twins <= work([*both, *load_set("reference")], "native")


def test_the_cpu_sets_have_what_a_machine_without_a_card_should_cover() -> None:
    listed = load_set("cpu")
    assert {row.device for row in listed} == {"cpu"}
    assert {row.compile for row in listed if row.quantization is None} == {True, False}
    schemes = {row.quantization for row in listed}
    assert {"int8wo", "int8dq", "int4wo-64", "float8wo"} <= schemes
    long = {row.kv_cache for row in listed if (row.cache_size or 0) > 1000}
    assert long == {None, "int8"}
    listed = load_set("cpu-long")
    assert {(row.device, row.dtype) for row in listed} == {("cpu", "float32")}
    assert {row.kv_cache for row in listed if row.fill} == {None, "int8", "fp8"}
    assert max(row.fill for row in listed) > 2000
    assert max(row.prompt_length for row in listed) >= 2048
    assert max(row.batch_size for row in listed) >= 32
    assert any(row.ragged for row in listed)


def test_the_filled_set_has_room_for_only_the_prompt_and_the_new_tokens() -> None:
    listed = load_set("filled")
    assert {row.model for row in listed} == {"Meta-Llama-3.1-8B"}
    sizes = {int(line["cache_size"]) for line in published() if line["cache_size"]}
    assert {row.cache_size for row in listed} == sizes
    assert all(row.positions == row.cache_size for row in listed)
    kinds = {(row.cache_size, row.kv_cache, row.quantization) for row in listed}
    assert len(kinds) == len(listed) == len(sizes) * 3 * 2
    assert {row.kv_cache for row in listed} == {None, "int8", "fp8"}
    assert {row.quantization for row in listed} == {None, "int4wo-64"}


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("prefill", "prompt_length", {512, 2048, 8192, 32768}),
        ("batch", "batch_size", {1, 8, 32, 128}),
    ],
)
def test_each_scheme_of_the_table_at_each_length_and_batch(
    name: str, field: str, values: set[int]
) -> None:
    listed = load_set(name)
    for scheme in schemes_of_the_table():
        of_scheme = [row for row in listed if (row.quantization or "none") == scheme]
        assert {getattr(row, field) for row in of_scheme if not row.ragged} == values
        assert any(row.ragged for row in of_scheme) == (name == "batch")
    assert {row.quantization or "none" for row in listed} == schemes_of_the_table()
    assert all(row.device == "cuda" for row in listed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[row]]\nmodel = "7B"\nquantisation = "int8wo"', "row 1: quantisation: unk"),
        ('[[row]]\nmodel = "7B"\n[[row]]\nmodel = 7', "row 2: model: 7 is not allowed"),
        ('[[row]]\nmodel = "7B"\ncompile = "yes"', "row 1: compile: 'yes' is not all"),
        ('[[row]]\nmodel = "7B"\nbatch_size = "8"', "row 1: batch_size: '8' is not a"),
        ('[[row]]\nmodel = "7B"\ndtype = "bf16"', "row 1: dtype: 'bf16' is not allow"),
        ('[[row]]\ndtype = "float32"', "row 1: model: the field is missing"),
        ('[[row]]\nmdoel = "7B"', "row 1: mdoel: unknown field; did you mean model? "),
        ('[[row]]\nmodel = "7B"\n[[row]]\nmodel = "7b"', "rows 1 and 2 have one id"),
        ('[[rows]]\nmodel = "7B"', "rows: unknown table; allowed: [defaults], [[row]]"),
        ("", "it has no rows"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        ("[[row]\n", "Invalid TOML"),
        ('row = ["7B"]', "row 1"),
        ("defaults = 3\n", "defaults: it must be a table"),
        ('[[row]]\nmodel = "7B"\ntemperature = nan', "temperature: nan is not all"),
        ('[[row]]\nmodel = "7B"\ndtype = 2024-01-01', "row 1: dtype"),
    ],
)
def test_a_typo_in_a_file_is_named(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused = refusal(selection.load_file, path, error=RecordError)
    assert message in refused
    assert str(path) in refused


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused_alike(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[[row]]\nmodel = "7B"\ntemperature = {text}', encoding="utf-8")
    of_file = refusal(selection.load_file, path, error=RecordError)
    with pytest.raises(ArgumentTypeError) as of_option:
        FINITE(text)
    said = f"{text} is not allowed; allowed: a finite number"
    assert of_file == f"{path}: row 1: temperature: {said}"
    assert str(of_option.value) == said


def test_rows_that_any_glob_matches_are_selected() -> None:
    some = selection.select(load_set("cpu"), ["*int8wo*", "*int8dq*"])
    assert {row.quantization for row in some} == {"int8wo", "int8dq"}
