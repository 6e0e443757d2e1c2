"""Saving a model and loading it again: the same model, told for what it is."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import quantize_

from llama_perf import generate, load_model, quantize_model, save_model
from llama_perf.checkpoints.config import from_hugging_face, to_hugging_face
from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.save import check_scheme_savable
from llama_perf.checkpoints.saved import SAVED_KERNELS
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.kernels.packing import from_lanes, unpack
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.options import GREEDY
from llama_perf.llama.presets import PRESETS
from llama_perf.llama.transformer import Origin, Transformer
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.prepare import prepare_row
from llama_perf.rows.spec import RowSpec
from tests.correctness.quantize.test_apply import BOTH, SMALL, linears, small
from tests.correctness.support.errors import refusal
from tests.correctness.support.processes import HANG_S
from tests.correctness.support.schemes import cpu_config

CPU = torch.device("cpu")
PROMPT = torch.arange(8).view(1, 8) * 31 % SMALL.vocab_size
TIED = replace(SMALL, tied_embeddings=True)
ROPE = RopeScaling(
    factor=7.3, low_freq_factor=1.1, high_freq_factor=3.9, original_context=77
)
ODD = replace(TIED, head_dim=48, norm_eps=3e-7, rope_base=12345.6, context=321)
ODD = replace(ODD, rope_scaling=ROPE)


def quantized(
    scheme: str, kernels: str = "native", config: ModelConfig = SMALL
) -> Transformer:
    return quantize_model(small(config), scheme, kernels=kernels)


def change_said(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["llama_perf"] |= changes
    path.write_text(json.dumps(fields), encoding="utf-8")


def assert_same(actual: Transformer, wanted: Transformer) -> None:
    assert actual.config == wanted.config
    assert actual.origin == wanted.origin
    assert actual.weight_bytes() == wanted.weight_bytes()
    for name, parameter in wanted.named_parameters():
        other = actual.get_parameter(name)
        assert type(other.data) is type(parameter.data), name
        assert other.dtype == parameter.dtype, name
    assert torch.equal(actual.logits(PROMPT), wanted.logits(PROMPT))


@pytest.mark.parametrize(
    ("scheme", "kernels", "config"),
    [
        # Quantizing takes the output layer out of a tie.
        *((*names, TIED) for names in BOTH if names[1] in SAVED_KERNELS),
        *(("int8wo", kernels, SMALL) for kernels in SAVED_KERNELS),
        ("int8wo", "native", ODD),
    ],
)
def test_a_saved_model_is_the_same_model(
    scheme: str, kernels: str, config: ModelConfig, tmp_path: Path
) -> None:
    model = quantized(scheme, kernels, config)
    folder = save_model(model, tmp_path / "saved")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.pth"}
    loaded = load_model(folder)
    assert_same(loaded, model)
    one, other = (
        generate(llama, PROMPT, max_new_tokens=5, sampling=GREEDY)
        for llama in (loaded, model)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "float8wo", "int4wo-32"])
def test_torchaos_tensors_are_loaded_in_their_own_dtype_alone(
    scheme: str, dtype: str, tmp_path: Path
) -> None:
    model = small().to(getattr(torch, dtype))
    check_scheme_savable(scheme, kernels="torchao", device=CPU, dtype=model.dtype)
    quantize_model(model, scheme, kernels="torchao")
    folder = save_model(model, tmp_path / "saved")
    assert_same(load_model(folder, dtype=dtype), model)
    assert refusal(load_model, folder) == (
        f"dtype: 'float32' is not allowed; {folder} was saved for {dtype}, which"
        " torchao's tensors keep"
    )
    change_said(folder, device="cuda")
    with pytest.raises(SpecError, match=r"device: 'cpu' is not allowed; .* for cuda"):
        load_model(folder, dtype=dtype)


@pytest.mark.parametrize(
    "scheme", ["int8wo", "int4wo-64", "uintx-3-4", "fp6", "float8dq-tensor"]
)
def test_native_weights_are_loaded_in_any_dtype(scheme: str, tmp_path: Path) -> None:
    model = quantized(scheme)
    folder = save_model(model, tmp_path / "saved")
    loaded = load_model(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    # The codes and scales are as they were.
    assert_same(loaded.to(torch.float32), model.to(torch.bfloat16).to(torch.float32))


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [
        ("int4wo-64-hqq", "torchao"),
        ("uintx-3-4", "native"),
        # The first one imports as much of torchao.
        pytest.param("int8dq", "torchao", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_quantized_nothing_loads_it(
    scheme: str, kernels: str, tmp_path: Path
) -> None:
    model = quantized(scheme, kernels)
    folder = save_model(model, tmp_path / "saved")
    code = (
        "import sys, torch, llama_perf\n"
        "model = llama_perf.load_model(sys.argv[1])\n"
        "torch.save(model.logits(torch.load(sys.argv[2])), sys.argv[2])\n"
    )
    torch.save(PROMPT, tmp_path / "tensor.pt")
    words = [sys.executable, "-c", code, str(folder), str(tmp_path / "tensor.pt")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG_S)
    assert done.stderr == ""
    assert torch.equal(torch.load(tmp_path / "tensor.pt"), model.logits(PROMPT))


def test_a_model_that_was_saved_in_int8_rows_is_laid_out_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = quantized("int8dq", "native")
    logits = model.logits(PROMPT)
    for linear in linears(model).values():
        weight: Any = linear.weight
        codes = unpack(weight.codes, 8, weight.columns).to(torch.int8)
        rows = from_lanes(codes, weight.rows).contiguous()
        monkeypatch.setattr(weight, "codes", rows)
    loaded = load_model(save_model(model, tmp_path / "saved"))
    weights: list[Any] = [linear.weight for linear in linears(loaded).values()]
    assert {weight.codes.dtype for weight in weights} == {torch.int32}
    assert torch.equal(loaded.logits(PROMPT), logits)


def test_a_configuration_is_read_back_exactly() -> None:
    for name, config in {**PRESETS, "odd": ODD}.items():
        text = json.dumps(to_hugging_face(config))
        assert from_hugging_face(json.loads(text), source=name) == config, name


@pytest.mark.parametrize("config", [SMALL, TIED], ids=["untied", "tied"])
def test_an_unquantized_model_is_saved_as_it_is(
    config: ModelConfig, tmp_path: Path
) -> None:
    model = small(config)
    loaded = load_model(save_model(model, tmp_path / "saved"))
    assert_same(loaded, model)
    same = loaded.output.weight is loaded.tok_embeddings.weight
    assert same == config.tied_embeddings
    # What was synthetic stays told as such, and it can be quantized.
    assert open_weights(tmp_path / "saved").source == "pth:saved (from synthetic)"
    origin = Origin(weights="synthetic", scheme="fp6", kernels="native")
    assert quantize_model(loaded, "fp6").origin == origin


def test_a_scheme_for_each_linear_is_saved_as_it_is(tmp_path: Path) -> None:
    model = small(TIED)
    configs = [cpu_config("int8wo"), cpu_config("int4wo-32"), None]
    for index, (name, linear) in enumerate(linears(model).items()):
        config = configs[index % 3]
        if config is not None and name != "output":
            quantize_(model, config, filter_fn=lambda layer, _, it=linear: layer is it)
    folder = save_model(model, tmp_path / "saved", scheme="autoquant")
    loaded = load_model(folder)
    kinds = {type(linear.weight.data).__name__ for linear in linears(loaded).values()}
    assert kinds == {"Int8Weight", "Int4Weight", "Tensor"}
    assert loaded.output.weight is loaded.tok_embeddings.weight
    model.origin = Origin(weights="synthetic", scheme="autoquant", kernels="native")
    assert_same(loaded, model)


def test_what_quantize_model_did_not_quantize_needs_its_schemes_name(
    tmp_path: Path,
) -> None:
    model = small()
    quantize_(model, cpu_config("uintx-2-8"))
    with pytest.raises(SpecError, match="UintxWeight weights that quantize_model did"):
        save_model(model, tmp_path / "saved")
    folder = save_model(model, tmp_path / "saved", scheme="uintx-2-8")
    loaded = load_model(folder)
    assert torch.equal(loaded.logits(PROMPT), model.logits(PROMPT))
    assert loaded.weight_bytes() == model.weight_bytes()
    for other, scheme, reason in (
        (loaded, "fp6", "the model is uintx-2-8"),
        (loaded, "int3wo", "did you mean int8wo"),
        (small(), "fp6", "the model is not quantized"),
    ):
        message = f"scheme: '{scheme}' is not allowed; {reason}"
        with pytest.raises(SpecError, match=message):
            save_model(other, tmp_path / "other", scheme=scheme)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("kernels", SAVED_KERNELS)
def test_a_row_of_a_saved_model_says_what_it_measured_and_has_no_scheme_of_its_own(
    kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(quantized("int8wo", kernels), tmp_path / "saved")
    row = RowSpec(model="saved", dtype="float32", device="cpu", max_new_tokens=4)
    prepared = prepare_row(row, checkpoints=tmp_path)
    assert prepared.quantization == "int8wo"
    made = f"int8wo, {kernels}, from synthetic"
    assert prepared.weights == f"pth:saved ({made})"
    message = re.escape(
        f"quantization: 'fp6' is not allowed; this model is quantized already ({made})"
    )
    with pytest.raises(SpecError, match=message):
        quantize_model(load_model(folder), "fp6")
    with pytest.raises(SpecError, match=message):
        prepare_row(replace(row, quantization="fp6"), checkpoints=tmp_path)
    # What is needed is what int8wo needs, not what float32 would.
    half = sum(parameter.numel() * 2 for parameter in small().parameters())
    free = "llama_perf.devices.cpu.CpuDevice.free_memory_bytes"
    monkeypatch.setattr(free, lambda _: half)
    prepare_row(row, checkpoints=tmp_path)
    broken = "llama_perf.measure.prepare.broken_upstream"
    monkeypatch.setattr(broken, lambda row: row.quantization and f"no {row.kernels}")
    with pytest.raises(NotRunnable, match=f"^no {kernels}$"):
        prepare_row(row, checkpoints=tmp_path)


@pytest.mark.parametrize("kernels", SAVED_KERNELS)
def test_loading_takes_the_model_and_one_layer_and_shares_nothing(
    kernels: str, tmp_path: Path
) -> None:
    model = quantized("int8wo", kernels, replace(TIED, n_layers=8))
    path = save_model(model, tmp_path / "saved") / "model.pth"
    layer = sum(parameter.numel() for parameter in model.layers[0].parameters())
    reader = open_weights(path)
    with LiveBytes("cpu") as live:
        loaded = build_model(reader, dtype=torch.float32, device=CPU)
    assert live.peak - live.now < 3 * layer
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded.logits(PROMPT), model.logits(PROMPT))
