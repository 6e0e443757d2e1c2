from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from llama_perf.errors import SpecError
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import DEVICES, RowSpec

CONTRACT_ID = "llama-2-7b-chat-hf.int4wo-64.bf16.compile"


def test_id_of_the_contract() -> None:
    row = RowSpec(model="Llama-2-7b-chat-hf", quantization="int4wo-64", compile=True)
    assert row.id == CONTRACT_ID


CHANGES: list[tuple[str, object]] = [
    ("model", "Meta-Llama-3-8B"),
    ("quantization", "int8wo"),
    ("kernels", "torchao"),
    ("dtype", "float32"),
    ("device", "cpu"),
    ("compile", True),
    ("capture", True),
    ("fused", True),
    ("compile_prefill", True),
    ("attention", "sdpa"),
    ("kv_cache_quantization", True),
    ("kv_cache_quantization", "fp8"),
    ("linear_causal_mask", True),
    ("prefill_chunk", 64),
    ("cache_size", 4096),
    ("fill", 100),
    ("batch_size", 8),
    ("ragged", True),
    ("prompt_length", 7),
    ("max_new_tokens", 10),
    ("num_samples", 3),
    ("top_k", None),
    ("temperature", 0.5),
]
NEEDED: dict[str, dict[str, Any]] = {
    "compile_prefill": {"compile": True},
    "ragged": {"batch_size": 2},
}


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_every_field_that_changes_the_work_is_in_the_id(
    field: str, value: object
) -> None:
    needed = NEEDED.get(field, {})
    row = RowSpec(model="Llama-2-7b-chat-hf", quantization="int4wo-64", **needed)
    changes: dict[str, Any] = {field: value}
    other = replace(row, **changes)
    assert other.id != row.id
    assert other.fingerprint != row.fingerprint


def test_all_fields_of_the_work_are_among_those_changes() -> None:
    others = {"upstream_issue", "limits"}
    assert asdict(RowSpec(model="7B")).keys() - others == {name for name, _ in CHANGES}


def test_the_kinds_of_a_cache_and_their_tokens() -> None:
    def row(kind: bool | str) -> RowSpec:
        return RowSpec(model="7B", kv_cache_quantization=kind)

    assert row("int8") == row(True)
    assert row(True).id == "7b.none.bf16.eager.kv-int8"
    assert row("fp8").id == "7b.none.bf16.eager.kv-fp8"
    assert [row(kind).kv_cache for kind in (False, True, "fp8")] == [
        None,
        "int8",
        "fp8",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantization": "int4wo-63"}, ["quantization", "'int4wo-63'", "32, 64, 128"]),
        ({"quantization": "int5wo"}, ["quantization", "'int5wo'", "int8wo", "uintx"]),
        ({"quantization": "uintx-9-64"}, ["quantization", "'uintx-9-64'", "1 to 8"]),
        ({"quantization": "int4wo-064"}, ["quantization", "'int4wo-064'"]),
        ({"quantization": "INT8WO"}, ["quantization", "'INT8WO'"]),
        ({"dtype": "fp32"}, ["dtype", "'fp32'", "float32, float16, bfloat16"]),
        ({"device": "tpu"}, ["device", "'tpu'", *DEVICES]),
        ({"kernels": "magic"}, ["kernels", "'magic'", "native, torchao"]),
        ({"kernels": "torchao"}, ["kernels", "'torchao'", "unquantized"]),
        ({"attention": "flash"}, ["attention", "'flash'", "sdpa"]),
        ({"kv_cache_quantization": "int4"}, ["kv_cache", "'int4'", "int8, fp8"]),
        ({"prefill_chunk": 0}, ["prefill_chunk", "0", "1 or more"]),
        ({"ragged": True}, ["ragged", "True", "batch_size of 2"]),
        (
            {"ragged": True, "batch_size": 2, "attention": "sdpa"},
            ["ragged", "True", "'decode'"],
        ),
        ({"fill": 300, "cache_size": 400}, ["cache_size", "400", "fill 300", "506"]),
        ({"cache_size": 100}, ["cache_size", "100", "206 positions"]),
        ({"batch_size": 0}, ["batch_size", "0", "1 or more"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "0", "1 or more"]),
        ({"temperature": -1.0}, ["temperature", "-1.0", "0 (greedy)"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"top_k": 0}, ["top_k", "0", "1 or more"]),
        ({"capture": True, "device": "cpu"}, ["capture", "CUDA graph"]),
        ({"compile_prefill": True}, ["compile_prefill", "compile = true"]),
        ({"fill": -1}, ["fill", "-1"]),
        ({"model": ""}, ["model", "''"]),
        ({"upstream_issue": "2376"}, ["upstream_issue", "'2376'", "owner/repository#"]),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        RowSpec(**{"model": "7B", **fields})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_mark_of_an_upstream_issue_is_no_part_of_the_work() -> None:
    unmarked = RowSpec(model="7B", quantization="int8dq", kernels="torchao")
    marked = replace(unmarked, upstream_issue="pytorch/ao#2376")
    assert marked.id == unmarked.id
    assert marked.fingerprint == unmarked.fingerprint
    assert marked.reference_key == unmarked.reference_key
    assert marked != unmarked


@pytest.mark.parametrize(
    ("name", "family", "bits", "group", "hqq"),
    [
        ("int8wo", "int8wo", None, None, False),
        ("int4wo-32-hqq", "int4wo", None, 32, True),
        ("uintx-2-8", "uintx", 2, 8, False),
        ("uintx-7-64-hqq", "uintx", 7, 64, True),
        ("float8dq-row", "float8dq-row", None, None, False),
        ("autoquant-int4", "autoquant-int4", None, None, False),
    ],
)
def test_scheme_names(
    name: str, family: str, bits: int | None, group: int | None, hqq: bool
) -> None:
    assert Scheme.parse(name) == Scheme(
        name=name, family=family, bits=bits, group_size=group, hqq=hqq
    )
