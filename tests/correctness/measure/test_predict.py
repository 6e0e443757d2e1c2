"""Predicted memory: beside the ceilings, published peaks, tensors, and real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf import quantize_model
from llama_perf.checkpoints.load import SMOLLM2, build_model
from llama_perf.cli.main import main
from llama_perf.devices.device import device_of
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.presets import preset
from llama_perf.llama.sampling import Sampling, sample
from llama_perf.llama.transformer import Transformer, tensor_bytes
from llama_perf.measure.memory import MemoryMeter
from llama_perf.measure.predict import model_bytes, predict
from llama_perf.measure.prepare import check_runnable, predict_row, prepare
from llama_perf.measure.timing import measure
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables import peaks
from scripts.doc_tables.sizes import documented
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.support.live_bytes import LiveBytes
from tests.correctness.support.meta_run import bytes_on_meta
from tests.correctness.support.weights_samples import tiny_weights

CPU = torch.device("cpu")
TINY = ModelConfig(
    dim=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    intermediate_size=64,
    vocab_size=48,
    head_dim=16,
)
ROW = RowSpec(
    model="tiny",
    dtype="float32",
    device="cpu",
    cache_size=300,
    batch_size=2,
    max_new_tokens=4,
)
SDPA: dict[str, Any] = {"attention": "sdpa"}
BIG = "Meta-Llama-3.1-8B"


def test_no_row_of_the_reference_is_predicted_above_its_ceiling() -> None:
    assert len(peaks.peaks()) == 43
    for each in peaks.peaks():
        assert each.predicted_gb <= each.ceiling_gb, each.row.id
        assert 0 < each.predicted.working_bytes < 0.1e9, each.row.id


def test_on_the_references_path_a_row_takes_what_was_published() -> None:
    cached = [each for each in peaks.peaks() if each.row.cache_size is not None]
    assert len(cached) == 15
    for each in cached:
        # The mask of the whole cache, and one layer's cache for every query head.
        found = (
            predict_row(replace(each.row, attention="sdpa", fused=False)).peak_bytes
            / 1e9
        )
        assert found == pytest.approx(each.published_gb, rel=0.05), each.row.id
        assert each.ceiling_gb < found, each.row.id


def test_the_document_has_the_peaks_that_are_computed() -> None:
    found = documented(peaks.PLACE)
    assert found == peaks.markdown(), "python -m scripts.doc_tables sizes --write"


def test_a_cache_of_codes_that_is_filled_takes_no_more_than_its_ceiling() -> None:
    filled = [
        each for each in selection.load_set("filled") if each.kv_cache is not None
    ]
    assert {each.allocated_positions for each in filled} >= {131072}
    for row in filled:
        # The caches grew with the cache's positions alone.
        working = predict_row(row).working_bytes
        assert working < 0.1e9, row.id


def test_a_cache_of_codes_takes_at_most_053_of_an_unquantized_one() -> None:
    row = RowSpec(model=BIG, cache_size=8192)
    plain = predict(row, preset(BIG)).cache_bytes
    for kind in (True, "fp8"):
        coded = replace(row, kv_cache_quantization=kind)
        assert predict(coded, preset(BIG)).cache_bytes <= 0.53 * plain


def engine_of(model: Transformer, row: RowSpec) -> Engine:
    return Engine(
        model,
        EngineOptions(
            batch_size=row.batch_size,
            cache_size=row.allocated_positions,
            kv_cache=row.kv_cache,
            attention=row.attention,
            prefill_chunk=row.prefill_chunk,
            linear_causal_mask=row.linear_causal_mask,
        ),
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prompt_length": 100, "prefill_chunk": 30},
        {"kv_cache_quantization": True, "prompt_length": 100},
        {"kv_cache_quantization": "fp8"},
        {**SDPA},
        {**SDPA, "linear_causal_mask": True},
    ],
    ids=str,
)
def test_what_is_predicted_is_what_the_tensors_take(
    change: dict[str, Any], tied: bool
) -> None:
    config, row = replace(TINY, tied_embeddings=tied), replace(ROW, **change)
    model = build_model(tiny_weights(config), dtype=torch.float32, device=CPU)
    held = LiveBytes("cpu")
    with held:
        engine = engine_of(model, row)
        caches = held.now
    known = [*model.parameters(), *(b for c in engine._caches for b in c.buffers())]
    if engine._mask is not None:
        known += [t for t in vars(engine._mask).values() if t is not None]
    # Of the chunk: its queries and their result by heads of the cache.
    chunk = min(row.prompt_length, row.prefill_chunk or row.prompt_length)
    queries = row.batch_size * chunk * config.n_heads * config.head_dim
    inside = 2 * 4 * queries
    if row.kv_cache is not None:
        # Keys, values, and either once more as float32, of fp8 beside the bits it is
        # widened from, or a part of the result; and the result.
        values = row.batch_size * config.n_kv_heads * chunk * config.head_dim
        widened = values * (4 + (2 if row.kv_cache == "fp8" else 0))
        inside += values * 2 * 4 + max(widened, queries * 4) + queries * 4
    operator = torch.ops.llama_perf.prefill_attention.default
    working = LiveBytes("cpu", known, {operator: inside})
    with working, torch.no_grad():
        tokens = torch.zeros((row.batch_size, row.prompt_length), dtype=torch.int64)
        token = sample(engine.prefill(tokens), Sampling(temperature=0.8, top_k=200))
        position = torch.tensor([row.prompt_length])
        sample(engine.decode(token, position), Sampling(temperature=0.8, top_k=200))
    found = predict(row, config)
    weights = sum(tensor_bytes(each) for each in model.parameters())
    assert found.model_size_bytes + found.embedding_bytes == weights
    assert found.model_size_bytes == model.weight_bytes()
    assert found.cache_bytes == caches
    # A few scalars and positions differ.
    assert found.working_bytes == pytest.approx(working.peak, rel=0.05, abs=2000)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"batch_size": 1, "temperature": 0.0, "top_k": None},
        {"prompt_length": 100, "prefill_chunk": 30, "batch_size": 3},
        {"kv_cache_quantization": True, "prompt_length": 600, "cache_size": 700},
        {"kv_cache_quantization": "fp8", "fill": 1500, "cache_size": 2000},
        {"fill": 130, "prefill_chunk": 40, "top_k": 7},
        SDPA,
        {**SDPA, "fill": 70, "prefill_chunk": 20, "prompt_length": 30},
        {**SDPA, "fill": 70, "batch_size": 1, "kv_cache_quantization": True},
        {**SDPA, "kv_cache_quantization": "fp8", "prompt_length": 50},
        {**SDPA, "linear_causal_mask": True, "prompt_length": 200},
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_the_formulas_count_what_the_engine_makes_to_the_byte(
    change: dict[str, Any], dtype: str, device: str, n_kv_heads: int
) -> None:
    config = replace(TINY, n_layers=1, n_kv_heads=n_kv_heads)
    row = replace(ROW, **change, dtype=dtype, device=device)
    prediction = predict(row, config)
    library_bytes = device_of(device).library_bytes
    working_bytes = prediction.working_bytes - library_bytes
    assert (prediction.cache_bytes, working_bytes) == bytes_on_meta(config, row)


def test_a_filling_counts_where_it_is_longer_than_the_prompt() -> None:
    short = replace(ROW, cache_size=3000)
    filled = replace(short, fill=2000)
    most, least = (predict(row, TINY).working_bytes for row in (filled, short))
    assert most > 10 * least


@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "int4wo-64", "float8wo"])
def test_torchaos_weights_take_what_is_predicted(scheme: str) -> None:
    model = quantize_model(small(SMALL), scheme, kernels="torchao")
    found = model_bytes(
        SMALL, scheme, kernels="torchao", dtype=torch.float32, device="cpu"
    )
    assert found == model.weight_bytes()


def test_torchaos_int4_for_cuda_takes_what_was_published() -> None:
    def of(model: str, device: str) -> float:
        found = model_bytes(
            preset(model),
            "int4wo-64",
            kernels="torchao",
            dtype=torch.bfloat16,
            device=device,
        )
        return round(found / 1e9, 2)

    # K = 11008 is padded to 11264 there; Llama-3's K are multiples of 1024.
    assert of("7B", "cuda") == 3.74 > of("7B", "cpu")
    assert of("Llama-3-8B", "cuda") == 4.22 == of("Llama-3-8B", "cpu")


def test_autoquant_is_predicted_as_the_least_it_can_choose() -> None:
    for name, least in (("autoquant", "int8wo"), ("autoquant-int4", "int4wo-64")):
        found = model_bytes(
            SMALL, name, kernels="native", dtype=torch.bfloat16, device="cuda"
        )
        assert found == model_bytes(SMALL, least, dtype=torch.bfloat16)


def test_a_scheme_that_does_not_fit_is_named_as_the_build_names_it() -> None:
    odd = replace(SMALL, intermediate_size=SMALL.intermediate_size + 10)
    row = RowSpec(model="odd", quantization="int4wo-32", device="cpu")
    with pytest.raises(SpecError, match=r"must divide K = \d+ of layers\.0\.feed_"):
        predict(row, odd)


@pytest.mark.parametrize("name", ["prepare", "check_runnable"])
def test_a_row_that_does_not_fit_is_not_run_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    row = RowSpec(model=BIG, device="cpu", cache_size=131072, batch_size=4)
    needed = predict_row(row).peak_bytes
    told = (
        r"needs 84\.\d GB \(KV cache 68\.7 GB at cache_size=131072, batch_size=4\);"
        rf" {(needed - 1) / 1e9:.1f} GB free"
    )

    def built(*_arguments: object, **_rest: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr("llama_perf.measure.prepare.build_model", built)
    monkeypatch.setattr(
        "llama_perf.devices.cpu.CpuDevice.free_memory_bytes", lambda _: needed - 1
    )
    functions: dict[str, Any] = {"prepare": prepare, "check_runnable": check_runnable}
    run = functions[name]
    with pytest.raises(NotRunnable, match=told):
        run(row)
    monkeypatch.setattr(
        "llama_perf.devices.cpu.CpuDevice.free_memory_bytes", lambda _: needed
    )
    check_runnable(row)
    if name == "prepare":
        with pytest.raises(AssertionError, match="it was built"):
            prepare(row)


ROWS = """
[[row]]
model = "stories15M"
[[row]]
model = "nobody-knows-this"
[[row]]
model = "stories15M"
quantization = "autoquant"
"""


def test_the_command_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ROWS, encoding="utf-8")
    assert main(["rows", "--rows", str(path), "--predict", "--json"]) == 0
    printed = capsys.readouterr()
    plain, unknown, chosen = json.loads(printed.out)
    row = RowSpec(model="stories15M")
    found = predict_row(row)
    assert plain["model_size_gb"] == round(found.model_size_bytes / 1e9, 4) > 0
    assert plain["peak_mem_gb"] == round(found.peak_bytes / 1e9, 4) > 0
    assert unknown["model_size_gb"] is unknown["peak_mem_gb"] is None
    assert 0 < chosen["model_size_gb"] < plain["model_size_gb"]
    reason, note = printed.err.splitlines()
    assert "nobody-knows-this" in reason
    assert "not predicted: model: " in reason
    assert note.startswith("autoquant chooses")
    assert main(["rows", "--rows", str(path), "--predict"]) == 0
    header, _, first, second, _, count, *notes = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["model_size_gb", "peak_mem_gb"]
    assert first.split()[-2:] == [
        f"{plain[name]:.2f}" for name in ("model_size_gb", "peak_mem_gb")
    ]
    assert second.split()[-2:] == ["-", "-"]
    assert count == "3 rows"
    assert notes == [reason, note]
    assert main(["rows", "--rows", str(path), "--json"]) == 0
    assert "peak_mem_gb" not in json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_length": 1000, "kv_cache_quantization": True},
        {"quantization": "int4wo-64"},
    ],
    ids=str,
)
def test_a_cpu_takes_what_is_predicted(change: dict[str, Any]) -> None:
    smollm2_path()  # Skips where it is not installed.
    row = RowSpec(
        model=SMOLLM2,
        dtype="float32",
        device="cpu",
        max_new_tokens=2,
        num_samples=1,
        **change,
    )
    meter = MemoryMeter(CPU)
    took = measure(prepare(row), meter=meter).peak_memory_bytes
    # An allocator keeps some of what packing the weights took.
    assert took == pytest.approx(predict_row(row).peak_bytes, rel=0.05, abs=45e6)
