from dataclasses import fields, replace
from typing import Any

import pytest

from llama_perf.rows.choices import DEVICES
from llama_perf.rows.limit_overrides import Limits
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.errors import refusal

CHANGES: dict[str, tuple[Any, ...]] = {
    **{field.name: (True,) for field in fields(RowSpec) if field.default is False},
    "model": ("Meta-Llama-3-8B",),
    "quantization": ("int8wo",),
    "kernels": ("torchao",),
    "dtype": ("float32",),
    "device": ("cpu",),
    "attention": ("sdpa",),
    "kv_cache_quantization": (True, "fp8"),
    "prefill_chunk": (64,),
    "modules": ("*.feed_forward.*",),
    "engine": ("transformers",),
    "tensor_parallel": (4,),
    "cache_size": (4096,),
    "fill": (100,),
    "batch_size": (8,),
    "prompt_length": (7,),
    "max_new_tokens": (10,),
    "num_samples": (3,),
    "top_k": (None,),
    "temperature": (0.5,),
}
NEEDED: dict[str, dict[str, Any]] = {
    "compile_prefill": {"compile": True},
    "ragged": {"batch_size": 2},
}
# None of them changes the work.
MARKS: dict[str, Any] = {
    "name": "nightly",
    "upstream_issue": "pytorch/ao#2376",
    "limits": Limits(),
}


def test_all_fields_of_the_work_and_no_others_change_the_id() -> None:
    assert {field.name for field in fields(RowSpec)} == CHANGES.keys() | MARKS.keys()
    for name, values in CHANGES.items():
        needed = NEEDED.get(name, {})
        row = RowSpec(model="Llama-2-7b", quantization="int4wo-64", **needed)
        others = [replace(row, **{name: value}) for value in values]
        assert len({one.id for one in (row, *others)}) == 1 + len(values), name
        assert row.fingerprint not in {one.fingerprint for one in others}, name
    row = RowSpec(model="7B", quantization="int8dq", kernels="torchao")
    for name, value in MARKS.items():
        marked = replace(row, **{name: value})
        assert marked != row
        for same in ("id", "fingerprint", "reference_key"):
            assert getattr(marked, same) == getattr(row, same), name


CONTRACT = {"model": "Llama-2-7b-chat-hf", "quantization": "int4wo-64", "compile": True}


@pytest.mark.parametrize(
    ("changes", "row_id", "kv_cache"),
    [
        (CONTRACT, "llama-2-7b-chat-hf.int4wo-64.bf16.compile", None),
        ({}, "7b.none.bf16.eager", None),
        ({"top_k": None}, "7b.none.bf16.eager.topk-all", None),
        ({"kv_cache_quantization": True}, "7b.none.bf16.eager.kv-int8", "int8"),
        ({"kv_cache_quantization": "int8"}, "7b.none.bf16.eager.kv-int8", "int8"),
        ({"kv_cache_quantization": "fp8"}, "7b.none.bf16.eager.kv-fp8", "fp8"),
    ],
)
def test_an_id_and_the_kind_of_a_cache(
    changes: dict[str, Any], row_id: str, kv_cache: str | None
) -> None:
    row = RowSpec(**({"model": "7B"} | changes))
    assert (row.id, row.kv_cache) == (row_id, kv_cache)
    if kv_cache == "int8":
        assert row == RowSpec(model="7B", kv_cache_quantization=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization": "int4wo-63"}, ["quantization", "'int4wo-63'", "32, 64, 128"]),
        ({"quantization": "int5wo"}, ["quantization", "'int5wo'", "int8wo", "uintx"]),
        ({"quantization": "int4wo"}, ["'int4wo'", "did you mean int4wo-64?"]),
        ({"quantization": "uintx-4"}, ["'uintx-4'", "did you mean uintx-4-8?"]),
        ({"quantization": "uintx-9-64"}, ["quantization", "'uintx-9-64'", "1 to 8"]),
        ({"quantization": "int4wo-064"}, ["quantization", "'int4wo-064'"]),
        ({"quantization": "INT8WO"}, ["quantization", "'INT8WO'"]),
        ({"dtype": "fp32"}, ["dtype", "'fp32'", "float32, float16, bfloat16"]),
        ({"device": "tpu"}, ["device", "'tpu'", *DEVICES]),
        ({"kernels": "magic"}, ["kernels", "'magic'", "native, torchao"]),
        ({"kernels": "torchao"}, ["kernels", "'torchao'", "unquantized"]),
        ({"quantization": "none"}, ["quantization", "'none'", "leave it out"]),
        ({"attention": "flash"}, ["attention", "'flash'", "sdpa"]),
        ({"kv_cache_quantization": "int4"}, ["kv_cache", "'int4'", "int8, fp8"]),
        ({"prefill_chunk": 0}, ["prefill_chunk", "0", "1 to 4194304"]),
        ({"ragged": True}, ["ragged", "true", "batch_size of 2"]),
        (
            {"ragged": True, "batch_size": 2, "attention": "sdpa"},
            ["ragged", "true", "'decode'"],
        ),
        ({"fill": 300, "cache_size": 400}, ["cache_size", "400", "fill 300", "506"]),
        ({"cache_size": 100}, ["cache_size", "100", "206 positions"]),
        ({"batch_size": 0}, ["batch_size", "0", "1 to 65536"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "0", "1 to 4194304"]),
        ({"temperature": -1.0}, ["temperature", "-1.0", "0 is greedy"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"temperature": 1e308}, ["temperature", "1e+308", "0 to 1000"]),
        ({"top_k": 0}, ["top_k", "0", "1 to 16777216", "none at all"]),
        ({"top_k": 2**63}, ["top_k", str(2**63), "1 to 16777216"]),
        ({"num_samples": 10**9}, ["num_samples", str(10**9), "1 to 10000"]),
        ({"fill": 2**64}, ["fill", str(2**64), "0 to 4194304"]),
        ({"cache_size": 2**23}, ["cache_size", str(2**23), "1 to 4194304"]),
        (
            {"batch_size": 2**16, "cache_size": 2**20},
            ["batch_size", "65536", "1073741824 positions", str(2**36)],
        ),
        ({"model": "two\nlines"}, ["model", r"'two\nlines'", "in one line"]),
        ({"model": "a\0b"}, ["model", r"'a\x00b'", "in one line"]),
        ({"model": "\udcff"}, ["model", r"'\udcff'", "in one line"]),
        ({"model": "m" * 4097}, ["model", "mmm...'", "at most 4096 characters"]),
        ({"capture": True, "device": "cpu"}, ["capture", "CUDA graph"]),
        ({"compile_prefill": True}, ["compile_prefill", "compile = true"]),
        ({"fill": -1}, ["fill", "-1"]),
        ({"model": ""}, ["model", "''"]),
        ({"name": ""}, ["name", "''", "1 to 32 letters, digits and . _ + -"]),
        ({"name": "a" * 33}, ["name", "aaa'", "1 to 32 letters"]),
        ({"name": "two words"}, ["name", "'two words'", "1 to 32 letters"]),
        ({"name": "bar|"}, ["name", "'bar|'", "1 to 32 letters"]),
        ({"name": ".dot"}, ["name", "'.dot'", "a letter or digit first"]),
        ({"name": "line\n"}, ["name", "1 to 32 letters"]),
        ({"upstream_issue": "2376"}, ["upstream_issue", "'2376'", "owner/repository#"]),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    changes: dict[str, Any], words: list[str]
) -> None:
    message = refusal(RowSpec, **({"model": "7B"} | changes))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "family", "parameters"),
    [
        ("int8wo", "int8wo", {}),
        ("int4wo-32-hqq", "int4wo", {"group_size": 32, "hqq": True}),
        ("uintx-2-8", "uintx", {"bits": 2, "group_size": 8}),
        ("uintx-7-64-hqq", "uintx", {"bits": 7, "group_size": 64, "hqq": True}),
        ("float8dq-row", "float8dq-row", {}),
        ("autoquant-int4", "autoquant-int4", {}),
    ],
)
def test_scheme_names(name: str, family: str, parameters: dict[str, Any]) -> None:
    assert Scheme.parse(name) == Scheme(name=name, family=family, **parameters)
