"""Predicted sizes and peaks, beside published ones, tensors and real runs."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf import quantize_model
from llama_perf.checkpoints.find import SMOLLM2
from llama_perf.checkpoints.load import build_model
from llama_perf.cli.main import main
from llama_perf.devices.device import device_of
from llama_perf.errors import SpecError
from llama_perf.llama.decode_step import sample
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions, Sampling
from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import tensor_bytes
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.predict import model_bytes, predict
from llama_perf.measure.prepare import predict_row, prepare_row
from llama_perf.measure.timing import RowMemoryMeter, measure_row
from llama_perf.measure.working_bytes import inside_prefill_bytes
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables import sizes, stored
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.support import engines
from tests.correctness.support.schemes import schemes_on
from tests.correctness.support.weights_samples import TINY, tiny_weights

CPU = torch.device("cpu")
MODEL = replace(TINY, n_layers=3, head_dim=16)
ROW = RowSpec(model="tiny", dtype="float32", device="cpu", cache_size=300)
ROW = replace(ROW, batch_size=2, max_new_tokens=4)
SDPA: dict[str, Any] = {"attention": "sdpa"}
LINEAR = {**SDPA, "linear_causal_mask": True}
INT8, FP8 = ({"kv_cache_quantization": kind} for kind in (True, "fp8"))
CHUNKED = {"prompt_length": 100, "prefill_chunk": 30}
# No N is a multiple of sixteen rows, no K one of a group of 128 or a word's codes.
ODD = {"dim": 40, "intermediate_size": 200, "vocab_size": 328, "head_dim": 20}


def test_no_row_of_the_reference_is_predicted_above_its_ceiling() -> None:
    rows = selection.load_set("reference")
    assert len(rows) == 43
    for row in rows:
        predicted = predict_row(row)
        assert predicted.peak_bytes / 1e9 <= sizes.ceiling_gb(row), row.id
        assert 0 < predicted.working_bytes < 0.1e9, row.id
    cached = [row for row in rows if row.cache_size is not None]
    assert len(cached) == 15
    for row in cached:
        # On the reference's path a row takes what was published: the mask of the whole
        # cache, and one layer's cache for every query head.
        took = predict_row(replace(row, attention="sdpa", fused=False)).peak_bytes
        listed = stored.published(row).peak_memory_bytes
        assert took == pytest.approx(listed, rel=0.05), row.id
        assert sizes.ceiling_gb(row) < took / 1e9, row.id


def test_a_cache_of_codes_takes_no_more_than_its_ceiling_filled_or_not() -> None:
    filled = [row for row in selection.load_set("filled") if row.kv_cache]
    assert {row.allocated_positions for row in filled} >= {131072}
    for row in filled:
        # The caches grew with the cache's positions alone.
        assert predict_row(row).working_bytes < 0.1e9, row.id
    row = RowSpec(model="Meta-Llama-3.1-8B", cache_size=8192)
    unquantized, *coded = (
        predict_row(replace(row, kv_cache_quantization=kind)).cache_bytes
        for kind in (False, True, "fp8")
    )
    assert max(coded) <= 0.53 * unquantized
    # A filling counts where it is longer than the prompt.
    fills = (replace(ROW, cache_size=3000, fill=fill) for fill in (0, 2000))
    short, long = (predict(row, MODEL).working_bytes for row in fills)
    assert long > 10 * short


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "change", [{}, CHUNKED, {**INT8, "prompt_length": 100}, FP8, SDPA, LINEAR], ids=str
)
def test_the_tensors_take_what_is_predicted(change: dict[str, Any], tied: bool) -> None:
    config, row = replace(MODEL, tied_embeddings=tied), replace(ROW, **change)
    model = build_model(tiny_weights(config), dtype=torch.float32, device=CPU)
    live = LiveBytes("cpu")
    with live:
        engine = Engine(model, EngineOptions.of(row))
        caches = live.now
    # What the operator takes inside is not seen.
    operator = torch.ops.llama_perf.prefill_attention.default
    inside = {operator: inside_prefill_bytes(config, row)}
    working, sampling = LiveBytes("cpu", engine.tensors(), inside), Sampling()
    with working, torch.no_grad():
        tokens = torch.zeros((row.batch_size, row.prompt_length), dtype=torch.int64)
        token = sample(engine.prefill(tokens), sampling)
        sample(engine.decode(token, torch.tensor([row.prompt_length])), sampling)
    prediction = predict(row, config)
    weights = sum(tensor_bytes(parameter) for parameter in model.parameters())
    assert prediction.model_size_bytes + prediction.embedding_bytes == weights
    assert prediction.model_size_bytes == model.weight_bytes()
    assert prediction.cache_bytes == caches
    # A few scalars and positions differ.
    assert prediction.working_bytes == pytest.approx(working.peak, rel=0.05, abs=2000)


@pytest.mark.parametrize(
    ("change", "on_cpu", "on_cuda", "with_more_heads"),
    [
        ({}, 23600, 14384, 17456),
        ({"batch_size": 1, "temperature": 0.0, "top_k": None}, 12032, 7424, 8960),
        ({**CHUNKED, "batch_size": 3}, 188912, 114032, 137072),
        ({**INT8, "prompt_length": 600, "cache_size": 700}, 2799008, 1635744, 2831776),
        ({**FP8, "fill": 1500, "cache_size": 2000}, 3310816, 2698720, 4877792),
        ({"fill": 130, "prefill_chunk": 40, "top_k": 7}, 168832, 102272, 122752),
        (SDPA, 15920, 627068, 473724),
        (
            {**SDPA, "fill": 70, "prefill_chunk": 20, "prompt_length": 30},
            *(64912, 905712, 757232),
        ),
        ({**SDPA, **INT8, "fill": 70, "batch_size": 1}, 145632, 386456, 348824),
        ({**SDPA, **FP8, "prompt_length": 50}, 300432, 703868, 627324),
        ({**LINEAR, "prompt_length": 200}, 529632, 627068, 580832),
    ],
    ids=str,
)
def test_the_engine_keeps_as_few_bytes_as_when_these_were_counted(
    change: dict[str, Any], on_cpu: int, on_cuda: int, with_more_heads: int
) -> None:
    """By formulas, tensor by tensor: one that lives longer than it need shows here."""
    for device, dtype, heads, wanted in (
        ("cpu", "float32", 2, on_cpu),
        ("cuda", "bfloat16", 2, on_cuda),
        ("cuda", "bfloat16", 4, with_more_heads),
    ):
        row = replace(ROW, **change, dtype=dtype, device=device)
        prediction = predict(row, replace(MODEL, n_kv_heads=heads))
        kept_bytes = prediction.working_bytes - device_of(device).library_bytes
        assert kept_bytes == wanted, device


def test_a_scheme_that_does_not_fit_is_named_as_the_build_names_it() -> None:
    odd = replace(preset("7B"), intermediate_size=11010)
    row = RowSpec(model="odd", quantization="int4wo-64", device="cpu")
    refusal = r"the group size 64 must divide K = 11010 of layers\.0\.feed_"
    with pytest.raises(SpecError, match=refusal):
        predict(row, odd)


def test_it_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    rows = ("stories15M", "nobody-knows-this", "stories15M")
    text = "".join(f'[[row]]\nmodel = "{model}"\n' for model in rows)
    path.write_text(f'{text}quantization = "autoquant"\n', encoding="utf-8")
    assert main(["rows", "--rows", str(path), "--predict", "--json"]) == 0
    printed = capsys.readouterr()
    known, unknown, chosen = json.loads(printed.out)
    prediction = predict_row(RowSpec(model="stories15M"))
    sizes = ("model_size_gb", "peak_mem_gb")
    assert known["model_size_gb"] == round(prediction.model_size_bytes / 1e9, 4) > 0
    assert known["peak_mem_gb"] == round(prediction.peak_bytes / 1e9, 4) > 0
    assert unknown["model_size_gb"] is unknown["peak_mem_gb"] is None
    assert 0 < chosen["model_size_gb"] < known["model_size_gb"]
    reason, note = printed.err.splitlines()
    assert "nobody-knows-this" in reason
    assert "not predicted: model: " in reason
    assert note.startswith("autoquant chooses")
    assert main(["rows", "--rows", str(path), "--predict"]) == 0
    header, _, first, second, _, count, *notes = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == list(sizes)
    assert first.split()[-2:] == [f"{known[name]:.2f}" for name in sizes]
    assert second.split()[-2:] == ["-", "-"]
    assert (count, notes) == ("3 rows", [reason, note])
    assert main(["rows", "--rows", str(path), "--json"]) == 0
    assert "peak_mem_gb" not in json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(
    "change",
    [
        {**INT8, "prompt_length": 1000},
        # Of a model that takes milliseconds `test_timing.py` compares as much.
        pytest.param({"quantization": "int4wo-64"}, marks=pytest.mark.slow),
    ],
)
def test_a_cpu_takes_what_is_predicted(change: dict[str, Any]) -> None:
    smollm2_path()  # Skips where it is not installed.
    row = RowSpec(model=SMOLLM2, dtype="float32", device="cpu", **change)
    row = replace(row, max_new_tokens=2, num_samples=1)
    meter = RowMemoryMeter(CPU)
    took = measure_row(prepare_row(row), meter=meter).peak_memory_bytes
    # An allocator keeps some of what packing the weights took.
    assert took == pytest.approx(predict_row(row).peak_bytes, rel=0.05, abs=45e6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("scheme", "kernels", "shape"),
    [
        *((scheme, "native", {}) for scheme in (None, *schemes_on("native"))),
        *((scheme, "native", ODD) for scheme in ("int8wo", "fp6", "float8dq-tensor")),
        *((scheme, "native", ODD) for scheme in ("uintx-3-4", "uintx-7-8")),
        ("sparse-marlin", "native", ODD),
        *((scheme, "torchao", {}) for scheme in ("int8wo", "int8dq", "float8wo")),
        *((scheme, "torchao", {}) for scheme in ("int4wo-64", "int4wo-32-hqq")),
    ],
    ids=str,
)
def test_a_size_is_that_of_the_model_itself(
    scheme: str | None, kernels: str, shape: dict[str, Any], tied: bool
) -> None:
    config = replace(SMALL, n_layers=3, tied_embeddings=tied, **shape)
    model = small(config)
    if scheme is not None:
        quantize_model(model, scheme, kernels=kernels)
    size = model_bytes(config, scheme, kernels=kernels, dtype=torch.float32)
    assert size == model.weight_bytes()


def test_torchaos_int4_for_cuda_takes_what_was_published() -> None:
    def of(model: str, device: str) -> float:
        fields: dict[str, Any] = {"kernels": "torchao", "device": device}
        size = model_bytes(preset(model), "int4wo-64", dtype=torch.bfloat16, **fields)
        return round(size / 1e9, 2)

    # K = 11008 is padded to 11264 there; Llama-3's K are multiples of 1024.
    assert of("7B", "cuda") == 3.74 > of("7B", "cpu")
    assert of("Llama-3-8B", "cuda") == 4.22 == of("Llama-3-8B", "cpu")


def test_autoquant_is_predicted_as_the_least_it_can_choose() -> None:
    for name, least in (("autoquant", "int8wo"), ("autoquant-int4", "int4wo-64")):
        size = model_bytes(SMALL, name, dtype=torch.bfloat16, device="cuda")
        assert size == model_bytes(SMALL, least, dtype=torch.bfloat16)


def test_every_size_is_the_published_one_within_a_percent() -> None:
    with_layout = {"uintx-4-64", "uintx-2-8", "sparse-marlin"}
    for (_, scheme), size in sizes.sizes().items():
        # In the layout whose size is to be the published one.
        comparable_bytes = size.reference_bytes or size.lean_bytes
        published_bytes = size.published_gb * 1e9
        assert comparable_bytes == pytest.approx(published_bytes, rel=0.01), size
        assert size.lean_bytes <= comparable_bytes, size
        assert (size.reference_bytes is not None) == (scheme in with_layout)
    wanted = {*with_layout, "int8wo", "int8dq", "int4wo-64", "fp6"}
    wanted |= {f"none, {dtype}" for dtype in ("bfloat16", "float32")}
    assert sizes.sizes().keys() == set(product(sizes.MODELS, wanted))


def test_the_row_that_is_to_run_out_of_memory_has_a_mask_on_sdpa_alone() -> None:
    """`test_cuda.py` leaves it 64 MiB."""
    rows = {
        attention: RowSpec(model="small", cache_size=16384, attention=attention)
        for attention in ("decode", "sdpa")
    }
    peaks = {name: predict(row, engines.SMALL).peak_bytes for name, row in rows.items()}
    assert peaks["sdpa"] - peaks["decode"] >= 16384**2
