"""Queries and keys after RoPE, row by row, against transformers' for every source."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from llama_perf import load_model, quantize_model, save_model
from tests.correctness.support import architectures
from tests.correctness.support import query_key_samples as samples

# Heads, heads of keys, and head_dim: grouped, one for each, one for all; 64, 128, and
# multiples of odd numbers.
SHAPES = [(8, 2, 64), (4, 4, 128), (4, 1, 96), (6, 3, 10), (2, 2, 6), (6, 2, 32)]
Write = Callable[..., Path]
SOURCES: dict[str, Write] = {
    "Meta's .pth": samples.meta_pth,
    "gpt-fast's wqkv": samples.gpt_fast_pth,
    "consolidated parts": samples.consolidated_pth,
    "safetensors": samples.safetensors,
    "safetensors in shards": partial(samples.safetensors, size="20KB"),
    "GGUF F32": partial(samples.gguf_file, kind=Kind.F32),
}


# Only safetensors' rows change their places, which every shape shows.
CASES = [("safetensors", shape) for shape in SHAPES]
CASES += [(source, shape) for source in SOURCES for shape in ((4, 1, 96), (6, 3, 10))]


@pytest.mark.parametrize(("source", "shape"), CASES)
def test_every_row(tmp_path: Path, source: str, shape: tuple[int, int, int]) -> None:
    model = samples.make_model(*shape)
    path = SOURCES[source](model, tmp_path)
    ours = samples.ours(load_model(path))
    assert samples.wrong_rows(ours, samples.theirs(model)) == []


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
def test_every_row_of_what_a_gguf_file_stores(tmp_path: Path, kind: Kind) -> None:
    """Blocks lie along a row, so the order of rows changes none of the values."""
    model = samples.make_model(8, 2, 64)
    path = samples.gguf_file(model, tmp_path, kind=kind)
    theirs = samples.theirs(samples.quantized_by_gguf(model, kind))
    assert samples.wrong_rows(samples.ours(load_model(path)), theirs) == []


# llama.cpp's converter knows no biases of Llama, no windows but Mistral's, and of
# SmolLM3 only every fourth layer without RoPE.
IN_GGUF: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral without": {},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 4},
}


@pytest.mark.parametrize("name", architectures.MODELS)
def test_every_row_of_other_architectures(tmp_path: Path, name: str) -> None:
    model = architectures.random_model(name)
    loaded = load_model(samples.safetensors(model, tmp_path, size="30KB"))
    saved = load_model(save_model(loaded, tmp_path / "saved"))
    theirs = samples.theirs(model)
    for ours in map(samples.ours, (loaded, saved)):
        assert samples.wrong_rows(ours, theirs) == []


@pytest.mark.parametrize("name", IN_GGUF)
def test_every_row_of_other_architectures_in_gguf(tmp_path: Path, name: str) -> None:
    model = architectures.random_model(name, **IN_GGUF[name])
    path = samples.gguf_file(model, tmp_path, kind=Kind.F32)
    theirs = samples.theirs(model)
    assert samples.wrong_rows(samples.ours(load_model(path)), theirs) == []


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_gguf_files_are_those_that_transformers_reads(
    tmp_path: Path, name: str
) -> None:
    """The order of rows in these tests' files is not this project's word alone."""
    model = architectures.random_model(name)
    samples.gguf_file(model, tmp_path, kind=Kind.F32)
    read = type(model).from_pretrained(tmp_path, gguf_file="model.gguf").state_dict()
    for key, wanted in model.state_dict().items():
        assert torch.equal(read[key], wanted), key


@pytest.mark.parametrize("scheme", [None, "int8wo"])
def test_every_row_of_a_saved_model(tmp_path: Path, scheme: str | None) -> None:
    model = samples.make_model(8, 2, 64)
    loaded = load_model(samples.safetensors(model, tmp_path))
    if scheme is not None:
        quantize_model(loaded, scheme)
    saved = save_model(loaded, tmp_path / "saved")
    # Codes of 8 bits are off by less than a hundredth; a wrong row by about 1.
    most = 1e-4 if scheme is None else 0.03
    ours = samples.ours(load_model(saved))
    assert samples.wrong_rows(ours, samples.theirs(model), most=most) == []


@pytest.mark.parametrize("part", ["q", "k"])
def test_one_row_in_the_wrong_order_is_found(tmp_path: Path, part: str) -> None:
    """It is what an average over all rows hides."""
    model = samples.make_model(8, 2, 64)
    path = samples.meta_pth(model, tmp_path)
    weights = torch.load(path / "consolidated.00.pth")
    # Row 6 of the second head is where Hugging Face has it: that is its row 3.
    unpermuted = model.state_dict()[f"model.layers.1.self_attn.{part}_proj.weight"]
    weights[f"layers.1.attention.w{part}.weight"][64 + 6] = unpermuted[64 + 6]
    torch.save(weights, path / "consolidated.00.pth")
    ours, theirs = samples.ours(load_model(path)), samples.theirs(model)
    # RoPE turns a row with the other one of its pair.
    wanted = [f"1 {part} 1 3", f"1 {part} 1 35"]
    assert samples.wrong_rows(ours, theirs) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bf16_gguf_equals_the_same_safetensors(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = samples.make_model(8, 2, 64).to(torch.bfloat16)
    folder, stored = tmp_path / "safetensors", tmp_path / "gguf"
    stored.mkdir()
    read = partial(_loaded, dtype=dtype)
    from_safetensors = read(samples.safetensors(model, folder))
    from_gguf = read(samples.gguf_file(model, stored, kind=Kind.BF16))
    assert from_gguf.keys() == from_safetensors.keys()
    for name, tensor in from_gguf.items():
        assert tensor.dtype == dtype
        assert torch.equal(_bits(tensor), _bits(from_safetensors[name])), name


def _loaded(path: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(load_model(path, dtype=dtype).named_parameters())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.uint8)
