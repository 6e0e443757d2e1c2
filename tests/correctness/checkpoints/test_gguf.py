"""GGUF files: read beside what gguf itself writes, and refused with a reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from llama_perf.checkpoints.formats import open_gguf
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.presets import PRESETS
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.tokenizer_samples import write_gguf
from tests.correctness.support.weights_samples import TINY, all_weights, file_refusal

Q8_0 = gguf.GGMLQuantizationType.Q8_0
KINDS = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
LLAMA31 = replace(TINY, rope_base=500000.0)
DAMAGED = "damaged, truncated, or no GGUF file of version 2 or 3"


def their_name(name: str) -> str:
    return str(NAMES.get_name(name, try_suffixes=(".weight", ".bias")) or name)


def write(
    folder: Path,
    change: dict[str, Any] | None = None,
    *,
    config: ModelConfig = TINY,
    fields: dict[str, Any] | None = None,
    quantized: bool = False,
    tokens: bool = True,
) -> Path:
    """The tiny model's file with changes; `fields` are llama.cpp's."""
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    stored = {
        "llama.block_count": config.n_layers,
        "llama.context_length": config.context,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.rope.freq_base": config.rope_base,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
    }
    if tokens:
        writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    for name, value in {**stored, **(fields or {})}.items():
        # The later one of two, as `general.architecture`.
        writer.kv_data[0].pop(name, None)
        kind = KINDS.get(type(value), gguf.GGUFValueType.FLOAT32)
        writer.add_key_value(name, value, kind)
    weights: dict[str, Any] = {**all_weights(), **(change or {})}
    for name, tensor in samples.split_qkv(weights).items():
        if tensor is not None:
            data, dtype = tensor.numpy(), None
            if quantized and data.ndim == 2:
                data, dtype = quantize(data, Q8_0), Q8_0
            writer.add_tensor(their_name(name), data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("stored", ["float32", "float16", "q8_0"])
def test_reads_as_float32(tmp_path: Path, stored: str) -> None:
    weights, quantized = all_weights(), stored == "q8_0"
    if stored == "float16":
        weights = {name: tensor.half() for name, tensor in weights.items()}
    path = write(tmp_path, weights, quantized=quantized)
    wanted = {name: tensor.float() for name, tensor in weights.items()}
    for name, tensor in wanted.items():
        if quantized and tensor.ndim == 2:
            data = dequantize(quantize(tensor.numpy(), Q8_0), Q8_0)
            wanted[name] = torch.from_numpy(data)
    reader = open_gguf(path)
    assert reader.source == "gguf:tiny.gguf"
    assert reader.config == TINY
    samples.assert_same(reader, wanted)
    # Writing to a tensor leaves the file alone.
    reader.embedding().zero_()
    samples.assert_same(open_gguf(path), wanted)


def test_without_tokens_or_an_output_layer(tmp_path: Path) -> None:
    assert open_gguf(write(tmp_path, tokens=False)).config == TINY
    tied = replace(TINY, tied_embeddings=True)
    reader = open_gguf(write(tmp_path, {"output.weight": None}))
    assert reader.config == tied
    samples.assert_same(reader, all_weights(samples.tiny_weights(tied)))


def llama31_factors(factor: float) -> Tensor:
    """What llama.cpp's converter writes, from the formula Meta published."""
    wavelengths = 2 * np.pi * LLAMA31.rope_base ** (np.arange(0, 8, 2) / 8)
    smooth = np.clip((8192 / wavelengths - 1) / (4 - 1), 0, 1)
    return torch.from_numpy(1 / ((1 - smooth) / factor + smooth)).float()


@pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
def test_rope_scaling_from_its_factors(tmp_path: Path, factor: float) -> None:
    factors = llama31_factors(factor)
    assert len(set(factors.tolist())) >= min(2, factor)
    path = write(tmp_path, {"rope_freqs.weight": factors}, config=LLAMA31)
    scaling = None if factor == 1 else RopeScaling(factor=factor)
    wanted = replace(LLAMA31, rope_scaling=scaling)
    assert open_gguf(path).config == wanted


def test_other_rope_factors_are_refused(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    for factors in ([1.0, 2.0, 3.0, 4.0], [1.0] * 3, [nan] * 4, [inf] * 4):
        change = {"rope_freqs.weight": torch.tensor(factors)}
        assert file_refusal(write(tmp_path, change, config=LLAMA31)) == (
            "rope_freqs.weight: these RoPE factors are not allowed; allowed: those of"
            " Llama 3.1 and 3.2 (low 1, high 4, original context 8192)"
        )


NAMES_ALLOWED = "'llama', 'qwen2', 'qwen3', 'smollm3'"
COUNT = "allowed: a whole number, 1 to 2147483647"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("general.architecture", "gemma2", f"allowed: {NAMES_ALLOWED}"),
        ("llama.expert_count", 8, "allowed: 0"),
        ("llama.rope.scaling.type", "yarn", "allowed: 'none'"),
        ("llama.rope.scale_linear", 4, "allowed: 1.0"),
        ("llama.rope.dimension_count", 4, "allowed: 8"),
        ("llama.attention.value_length", 4, "allowed: 8"),
        ("llama.attention.key_length", "8", COUNT),
        ("llama.attention.key_length", 8.0, COUNT),
        ("llama.attention.head_count_kv", 3, "it must divide the number of heads, 4"),
        ("llama.block_count", 2**31, "allowed: a whole number, 1 to 1000"),
        ("split.count", 2, "merge the parts with llama-gguf-split --merge"),
    ],
)
def test_a_field_that_does_not_fit(
    tmp_path: Path, name: str, value: object, allowed: str
) -> None:
    problem = f"{name}: {value!r} is not allowed; {allowed}"
    assert file_refusal(write(tmp_path, fields={name: value})) == problem


def test_too_many_tensors_a_missing_field_or_file(tmp_path: Path) -> None:
    path = write(tmp_path, config=replace(TINY, n_layers=1))
    first = "the tensor blk.1.attn_q.weight (and 8 more) is not allowed; "
    assert file_refusal(path).startswith(first)
    path.unlink()
    path = write_gguf(tmp_path / "vocabulary.gguf")
    assert file_refusal(path) == "the field 'llama.embedding_length' is missing"
    absent = "cannot be read: No such file or directory"
    assert file_refusal(tmp_path / "tiny.gguf", open_gguf) == absent


def test_smollm2_is_its_preset() -> None:
    reader = open_gguf(smollm2_path())
    assert reader.config == PRESETS["SmolLM2-135M"]
    assert reader.source == "gguf:SmolLM2-135M-Instruct.Q4_1.gguf"
    layer = reader.layer(29)
    assert layer["attention.wqkv.weight"].shape == (960, 576)
    assert layer["feed_forward.w2.weight"].dtype == torch.float32
    assert list(reader.final()) == ["norm.weight"]
