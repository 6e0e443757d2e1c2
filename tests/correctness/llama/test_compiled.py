"""Compiled blocks and heads against eager ones, and the compiler's settings.

Also the linear layer's own way for one token in compiled code on a CPU.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config, lowering
from torch._inductor.utils import run_and_get_code

from llama_perf.devices import processor
from llama_perf.llama import compiler
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.layers import Linear, product
from llama_perf.measure.environment import broken_upstream
from llama_perf.quantize.apply import quantize_model
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.figures import equal_up_to_turned_codes
from tests.correctness.support import engines
from tests.correctness.support.engines import engine, tokens

ROW = RowSpec(model="tiny", device="cpu", compile=True)
BOTH: dict[str, Any] = {"compile": True, "compile_prefill": True}


@pytest.fixture
def compiling() -> Iterator[None]:
    with compiler_settings():
        yield


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(
    ("scheme", "path"),
    [
        (None, "sdpa"),
        *((name, "decode") for name in (None, "int8dq", "float8wo")),
        # A row of it is compiled, and its values checked, in `test_cuda.py` as well.
        pytest.param("int8wo", "decode", marks=pytest.mark.slow),
    ],
)
def test_eager_and_compiled_agree(scheme: str | None, path: str) -> None:
    quantized, ids = engines.new_model(), tokens(length=12)
    if scheme is not None:
        quantize_model(quantized, scheme, kernels="torchao")
    eager, compiled = (
        engine(quantized, cache_size=32, attention=path, **options)
        for options in ({}, BOTH)
    )
    ours, theirs = (engines.logits_after(one, ids, 5, 7) for one in (compiled, eager))
    assert len(quantized.layers) > 1
    assert counters["stats"]["unique_graphs"] == 3, "one block of each, and the head"
    assert not counters["graph_break"]
    if scheme == "int8dq":
        same = equal_up_to_turned_codes(
            ours, theirs, engines.logits_after(engine(), ids, 5, 7)
        )
        # With torch 2.11 it is right on some processors, and the row refused on all.
        row = replace(ROW, quantization=scheme, kernels="torchao")
        assert same or broken_upstream(row)
        return
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    if scheme is None:
        # Quantized logits of a tiny random model have ties within rounding.
        assert torch.equal(
            engines.greedy(eager, ids, 16), engines.greedy(compiled, ids, 16)
        )


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(
    # Compiled codes of either kind are `test_codes.py`'s.
    "kind",
    [None, "int8", pytest.param("fp8", marks=pytest.mark.slow)],
)
def test_compiled_code_serves_every_position(kind: str | None) -> None:
    ids = tokens(batch=2, length=40)
    compiled = engine(batch_size=2, kv_cache=kind, prefill_chunk=11, **BOTH)
    eager, unquantized = engine(batch_size=2, kv_cache=kind), engine(batch_size=2)

    def check(prompt: int, steps: int) -> None:
        results, expected, exact = (
            engines.logits_after(one, ids, prompt, steps)
            for one in (compiled, eager, unquantized)
        )
        if kind is None:
            torch.testing.assert_close(results, expected, rtol=1e-3, atol=1e-3)
        else:
            assert equal_up_to_turned_codes(results, expected, exact)

    check(10, 30)
    counters.clear()
    for prompt in (11, 25, 33):
        check(prompt, 5)
    assert not counters["stats"]["unique_graphs"], "compiled anew"
    assert not counters["graph_break"]


@pytest.mark.usefixtures("compiling")
def test_a_compiled_int8_product_of_one_token_is_written() -> None:
    """torch 2.13 leaves the result of `_int_mm` as it finds it for other strides."""

    def rounded(x: Tensor, weight: Tensor) -> Tensor:
        codes = (x * 2).round().clamp(-127, 127).to(torch.int8)
        return torch._int_mm(codes, weight.t()).float() * 0.5

    weight = torch.randint(-50, 51, (40, 64), dtype=torch.int8)
    for count in (1, 3):
        # So small that no sum of two products leaves 16 bits, where there is no VNNI.
        x = torch.randn((count, 64))
        exact = (x * 2).round() @ weight.float().t() * 0.5
        torch.testing.assert_close(torch.compile(rounded)(x, weight), exact)


def test_code_is_found_again_unless_all_is_to_be_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, anew = torch.ones(2, 3), []
    for cold in (False, False, True, False):
        with compiler_settings(cold=cold):
            assert not compiler.compiled_anew()
            # A view needs no C++.
            torch.compile(torch.Tensor.t)(x)
            assert counters["stats"]["unique_graphs"] == 1
            anew.append(compiler.compiled_anew())
    assert anew == [True, False, True, False]


def test_settings_tell_code_apart_and_are_put_back_also_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared: Any = torch.compiler.config

    def settings() -> tuple[object, ...]:
        constraints = dict(lowering._maybe_layout_constraints)
        return config.get_config_copy(), constraints, shared.cache_key_tag

    def enter_and_fail() -> None:
        with compiler_settings():
            assert config.coordinate_descent_tuning
            tags.add(shared.cache_key_tag)
            raise ZeroDivisionError

    before, tags = settings(), {shared.cache_key_tag}
    with compiler_settings(used=False):
        assert settings() == before
    parts = [
        *((processor, name) for name in ("name", "instructions", "features")),
        *((compiler, name) for name in ("source_hash", "_compiler_version")),
        *((compiler, "package_version"), (torch, "get_num_threads")),
    ]
    for module, function in parts:
        for value in ("one", "two"):
            monkeypatch.setattr(module, function, lambda *_, said=value: said)
            with pytest.raises(ZeroDivisionError):
                enter_and_fail()
            assert settings() == before
    assert len(tags) == 1 + 2 * len(parts)
    # g++ 12 crashes on them on arm64.
    monkeypatch.setattr(processor, "is_arm64", lambda: True)
    with compiler_settings():
        assert not config.cpp_cache_precompile_headers
    assert settings() == before


def test_the_hash_of_the_source_is_that_of_what_decides_on_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "llama" / "compiler.py"))
    hashes = set()
    own = "llama/compiler.py"
    others = ("kernels/a.cpp", "kernels/triton/b.py", "quantize/autoquant/c.py")
    for file in (own, *others):
        (tmp_path / file).parent.mkdir(parents=True)
        for text in ("one", "two"):
            (tmp_path / file).write_text(text)
            hashes.add(compiler.source_hash.__wrapped__())
    (tmp_path / "kernels" / "__pycache__").mkdir()
    (tmp_path / "kernels" / "__pycache__" / "a.pyc").write_text("three")
    hashes.add(compiler.source_hash.__wrapped__())
    assert len(hashes) == 8


@pytest.mark.parametrize(
    "scheme", ["int8wo", "int8dq", "int4wo-32", "int4wo-32-hqq", "float8wo"]
)
def test_quantizing_leaves_the_compilers_settings_alone(scheme: str) -> None:
    before = config.get_config_copy()
    precision = torch.get_float32_matmul_precision()
    quantize_model(engines.new_model(), scheme, kernels="torchao")
    assert config.get_config_copy() == before
    assert torch.get_float32_matmul_precision() == precision


# How compiled code calls a library's product.
LIBRARY = re.compile(r"extern_kernels\.\w|torch\.ops\.(mkl|mkldnn)\.")
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 96), (96,), (2, 96)], ids=str)
def test_one_compiled_token_is_the_product_without_the_library(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(product, fullgraph=True, dynamic=False)
    x, weight = torch.randn(shape).to(dtype), torch.randn((75, 96)).to(dtype)
    actual, code = run_and_get_code(compiled, x, weight)
    expected = F.linear(x.double(), weight.double())
    assert (actual.dtype, actual.shape) == (dtype, expected.shape)
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < ROUNDING[dtype]
    # Several tokens are the library's.
    assert (LIBRARY.search(code[0]) is None) == (shape != (2, 96))


def test_several_tokens_are_the_librarys_to_the_bit() -> None:
    layer = Linear(96, 75).requires_grad_(False)
    assert layer.bias is None
    x = torch.randn((1, 2, 96))
    assert torch.equal(layer(x), F.linear(x, layer.weight))
