"""From a row to a model, a prompt and an engine; and what is refused on the way."""

import re
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from llama_perf import load_model
from llama_perf.checkpoints import load
from llama_perf.checkpoints.find import SMOLLM2
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.stored import StoredWeights
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.devices.cpu import CpuDevice
from llama_perf.devices.cuda import CudaDevice
from llama_perf.errors import NotRunnable, SpecError, TokenizerError, WeightsError
from llama_perf.measure import environment
from llama_perf.measure import prepare as build
from llama_perf.measure.environment import broken_upstream
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.prepare import check_runnable, predict_row, prepare_row
from llama_perf.measure.timing import time_row
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.errors import refusal
from tests.correctness.support.tokenizer_samples import train_sentencepiece
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    TINY,
    all_weights,
    tiny_weights,
    write_json,
)

CPU = torch.device("cpu")
# 2.6 MB a layer in float32: large beside what quantizing leaves over.
WIDE = replace(TINY, dim=256, n_layers=4, n_heads=8, n_kv_heads=4, head_dim=32)
WIDE = replace(WIDE, intermediate_size=512, vocab_size=256)
LAYER_BYTES = 4 * 256 * (512 + 256 + 3 * 512 + 2)
ROW = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=4)


def peak_bytes(layers: int, scheme: str | None) -> tuple[int, int]:
    """The most and the last of live tensor bytes while a model is built."""
    quantizer, on = None, dict[str, Any](device=CPU, dtype=torch.float32)
    if scheme is not None:
        quantizer = make_quantizer(scheme, kernels="torchao", **on)
    reader = SyntheticWeights(replace(WIDE, n_layers=layers), **on)
    read: list[weakref.ref[torch.UntypedStorage]] = []

    def watched(weights: Callable[..., Any]) -> Callable[..., Any]:
        def give(*index: int) -> Any:
            given = weights(*index)
            gone = all(reference() is None for reference in read)
            assert gone, "what was read is gone before the next"
            tensors = [given] if isinstance(given, Tensor) else given.values()
            read.extend(weakref.ref(tensor.untyped_storage()) for tensor in tensors)
            return given

        return give

    for part in ("embedding", "layer", "final"):
        setattr(reader, part, watched(getattr(reader, part)))
    with LiveBytes("cpu") as live:
        model = build_model(reader, **on, quantizer=quantizer)
    assert len(read) > 5 * layers
    assert live.now >= model.weight_bytes(), "the count misses tensors"
    return live.peak, live.now


@pytest.mark.parametrize("scheme", [None, "int8wo", "float8wo", "int4wo-64"])
def test_the_peak_is_the_model_also_with_more_layers(scheme: str | None) -> None:
    peak, final = peak_bytes(4, scheme)
    deep_peak, deep_final = peak_bytes(12, scheme)
    # What was read, what was moved, and what quantizing one weight takes.
    assert peak - final < 3 * LAYER_BYTES
    # Eight more layers add what they keep, and nothing while they are built.
    assert deep_peak - peak == deep_final - final
    if scheme is not None:
        assert deep_peak < 12 * LAYER_BYTES, "less than the unquantized model alone"


def test_a_model_shares_no_memory_with_its_file_and_has_its_vocabulary(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG_JSON)
    torch.save(all_weights(tiny_weights()), folder / "model.pth")
    train_sentencepiece(folder)
    with pytest.raises(TokenizerError, match=r"360 tokens is not allowed for a .* 48"):
        prepare_row(replace(ROW, model="tiny"), checkpoints=tmp_path)
    model = load_model(folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with (folder / "model.pth").open("r+b") as file:
        file.write(b"\xff" * (folder / "model.pth").stat().st_size)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("small", [True, False])
def test_a_small_model_is_read_once_for_rows_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG_JSON)
    torch.save(all_weights(tiny_weights()), folder / "model.pth")
    if not small:
        monkeypatch.setattr(load, "KEPT_BYTES", 1000)
    opened = load.OpenedModel(checkpoints=tmp_path, keep=True)
    row = replace(ROW, model="tiny", quantization="int8wo", max_new_tokens=2)
    plain = replace(row, quantization=None)
    reader, path = opened("tiny", dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(reader, StoredWeights)
    assert path == folder
    read = Mock(side_effect=reader.read)
    embedding = reader.embedding().clone()
    monkeypatch.setattr(reader, "read", read)
    first = prepare_row(row, opened=opened)
    assert read.called
    # A row never writes into what the next one gets.
    prepare_row(plain, opened=opened).engine.architecture.tok_embeddings.weight.zero_()
    assert torch.equal(reader.embedding(), embedding)
    again = prepare_row(row, opened=opened)
    with torch.no_grad():
        logits, *others = (
            one.engine.prefill(one.prompt)
            for one in (first, again, prepare_row(row, checkpoints=tmp_path))
        )
    assert all(torch.equal(logits, other) for other in others)
    # What the rows share counts in each of them, as if it had read it.
    reader.read_s = 1000.0
    assert prepare_row(row, opened=opened).build_s > 1000
    same = read("tok_embeddings.weight") is read("tok_embeddings.weight")
    assert same is small


@pytest.mark.parametrize("length", [1, 6, 200])
def test_a_prompt_has_its_length_and_is_the_same_in_all_rows(length: int) -> None:
    row = replace(ROW, prompt_length=length, batch_size=3)
    prompt = prepare_row(row).prompt
    assert (prompt.shape, prompt.dtype) == ((3, length), torch.int64)
    assert torch.equal(prompt, prompt[:1].expand(3, -1))
    assert torch.equal(prompt, prepare_row(row).prompt)
    assert prompt.unique().numel() > length // 2
    tokens = torch.arange(length).repeat(3, 1)
    prepared = prepare_row(row, prompt=tokens)
    assert torch.equal(prepared.prompt, tokens)
    assert (prepared.weights, prepared.lengths) == ("synthetic", None)
    assert prepared.engine.cache_size == length + row.max_new_tokens


def test_a_prompt_is_text_where_there_is_a_tokenizer() -> None:
    tokenizer = load_tokenizer(smollm2_path())
    row = replace(ROW, model=SMOLLM2, prompt_length=150, batch_size=2)
    prepared = prepare_row(row)
    assert prepared.prompt.shape == (2, 150)
    text = tokenizer.decode(prepared.prompt[0].tolist())
    assert "Hello, my name is Ada" in text
    assert text.count("lighthouse") > 1, "repeated until it is long enough"
    assert prepared.weights.startswith("gguf:")


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"model": "7B"}, "needs 13.5 GB (KV cache 0.0 GB at cache_size=10)"),
        (
            {"model": "Meta-Llama-3.1-8B", "cache_size": 131072, "batch_size": 4},
            "needs 84.8 GB (KV cache 68.7 GB at cache_size=131072, batch_size=4)",
        ),
    ],
)
def test_what_does_not_fit_is_not_run_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], needs: str
) -> None:
    row = replace(ROW, dtype="bfloat16", **fields)
    needed = predict_row(row).peak_bytes
    monkeypatch.setattr(build, "build_model", None)
    monkeypatch.setattr(CpuDevice, "free_memory_bytes", lambda _: needed - 1)
    for check in (check_runnable, prepare_row):
        message = refusal(check, row, error=NotRunnable)
        assert message == f"{needs}; {(needed - 1) / 1e9:.1f} GB free"
    monkeypatch.setattr(CpuDevice, "free_memory_bytes", lambda _: needed)
    check_runnable(row)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        prepare_row(row)


def test_a_ragged_row_has_prompts_of_every_length() -> None:
    prepared = prepare_row(replace(ROW, batch_size=4, ragged=True, prompt_length=7))
    assert prepared.lengths is not None
    assert prepared.lengths.tolist() == [1, 3, 5, 7]
    sample = time_row(prepared, torch.Generator().manual_seed(0))
    assert sample.tokens.shape == (4, 7 + ROW.max_new_tokens)


@pytest.mark.parametrize("kind", [False, True, "fp8"])
@pytest.mark.parametrize("attention", ["decode", "sdpa"])
def test_a_row_is_filled_before_it_is_timed(kind: bool | str, attention: str) -> None:
    row = replace(ROW, fill=9, kv_cache_quantization=kind, attention=attention)
    messages: list[str] = []
    warned = "a cache of 257 positions is longer than the 256 that this model"
    for size in (256, 257):
        prepare_row(replace(ROW, cache_size=size), notify=messages.append)
    assert messages == [f"{warned} was trained for"]
    prepared = prepare_row(row, progress=messages.append)
    assert messages[1:] == ["filling 9 positions"]
    assert prepared.engine.filled == 9
    assert prepared.engine.cache_size == ROW.positions + 9
    assert prepared.engine.caches is not None
    k_cache = prepared.engine.caches[-1].k_cache
    assert k_cache[:, :, :9].any(-1).all()
    assert not k_cache[:, :, 9:].any()
    filling = k_cache[:, :, :9].clone()
    for _ in range(2):
        sample = time_row(prepared, torch.Generator().manual_seed(0))
        assert sample.tokens.shape == (1, ROW.prompt_length + ROW.max_new_tokens)
    assert torch.equal(k_cache[:, :, :9], filling)


def test_what_is_not_built_or_cannot_be_compiled_here_is_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "compiler_problem", lambda _device: "no compiler")
    for change, reason in (
        ({"quantization": "fp6", "kernels": "torchao"}, "scheme fp6 is not built on "),
        ({"compile": True}, "no compiler"),
        ({"device": "cuda"}, "no CUDA device on this machine"),
    ):
        for check in (check_runnable, prepare_row):
            with pytest.raises(NotRunnable, match=reason):
                check(replace(ROW, **change))
    check_runnable(ROW)
    with pytest.raises(NotRunnable, match="no CUDA device on this machine"):
        load_model("stories15M", device="cuda")


@pytest.mark.parametrize("torch_version", ["2.11.0+cu130", "2.12.1"])
def test_a_row_that_upstream_miscompiles_is_not_run(
    torch_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(ROW, quantization="int8dq", kernels="torchao", compile=True)
    monkeypatch.setattr(torch, "__version__", torch_version)
    reason = f"torch {torch_version} compiles torchao's int8dq of one token to wrong"
    assert refusal(check_runnable, row, error=NotRunnable).startswith(reason)
    for other in ({"compile": False}, {"quantization": "int8wo"}, {"device": "cuda"}):
        assert broken_upstream(replace(row, **other)) == ""
    monkeypatch.setattr(torch, "__version__", "2.13.0a0+git")
    assert broken_upstream(row) == ""


@pytest.mark.parametrize(
    ("scheme", "compiled", "needs"),
    [
        *(("float8wo", True, True), ("float8wo", False, False)),
        *(("float8dq-tensor", False, True), ("int8wo", True, False)),
    ],
)
def test_float8_that_an_older_card_lacks_is_not_run(
    monkeypatch: pytest.MonkeyPatch, scheme: str, compiled: bool, needs: bool
) -> None:
    monkeypatch.setattr(build, "check_device", torch.device)
    monkeypatch.setattr(build, "build_problem", lambda _row: None)
    monkeypatch.setattr(CudaDevice, "free_memory_bytes", lambda _device: 10**12)
    row = replace(ROW, device="cuda", dtype="bfloat16", quantization=scheme)
    row = replace(row, kernels="torchao", compile=compiled)
    refusal = pytest.raises(NotRunnable, match=rf"{scheme} needs float8 \(sm_89 or up")
    capability = Mock()
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    for capability.return_value, refused in (((8, 0), needs), ((8, 9), False)):
        with refusal if refused else nullcontext():
            check_runnable(row)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "Foo-17B", r"model: 'Foo-17B' is not allowed; allowed: .* 7B, 13B"),
        ("dtype", "int8", "dtype: 'int8' is not allowed; allowed: float32, float16"),
        ("dtype", torch.int32, "dtype: 'int32' is not allowed; allowed: float32"),
        ("device", "gpu", "device: 'gpu' is not allowed; allowed: cpu, cuda"),
        ("device", "meta", "device: 'meta' is not allowed; allowed: cpu, cuda"),
        # A path that is not there is told apart from a name.
        ("model", "none/here", "checkpoint: 'none/here': no such file"),
        ("model", "model.pth", "checkpoint: 'model.pth': no such file"),
        ("model", "weights.gguf", "checkpoint: 'weights.gguf': no such file"),
    ],
)
def test_an_unknown_model_dtype_or_device_is_told_what_is_allowed(
    field: str, value: Any, message: str
) -> None:
    arguments = {"model": "stories15M", field: value}
    error = WeightsError if message.startswith("checkpoint") else SpecError
    refused = refusal(load_model, arguments.pop("model"), **arguments, error=error)
    assert re.match(message, refused)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_a_model_has_the_dtype_asked_for(dtype: str | torch.dtype) -> None:
    model = load_model("stories15M", dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
