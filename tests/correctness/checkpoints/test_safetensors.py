"""Hugging Face folders that transformers wrote: read, and refused with a reason."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llama_perf.checkpoints.find import open_weights
from llama_perf.errors import WeightsError
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import file_refusal, hugging_face_name

CONFIG, SINGLE = "config.json", "model.safetensors"
their_name = hugging_face_name


def make_model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    fields: dict[str, Any] = {**samples.CONFIG_JSON, **changes}
    return LlamaForCausalLM(LlamaConfig(**fields))


def write(folder: Path, change: dict[str, Tensor | None]) -> Path:
    """The tiny model's folder, with other tensors or without those that are None."""
    make_model().save_pretrained(folder)
    return edit(folder, {their_name(name): change[name] for name in change})


def edit(folder: Path, change: dict[str, Tensor | None]) -> Path:
    tensors = {**load_file(folder / SINGLE), **change}
    stored = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(stored, folder / SINGLE)
    return folder


def half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Interleaved RoPE order to Hugging Face's, written row by row."""
    heads = weight.split(head_dim)
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])


@pytest.mark.parametrize("shard_size", ["1GB", "12KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_every_tensor(
    tmp_path: Path, shard_size: str, dtype: torch.dtype
) -> None:
    model = make_model()
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / SINGLE).exists() == (shard_size == "1GB")
    reader = open_weights(tmp_path)
    assert reader.config == samples.TINY
    assert reader.source == f"safetensors:{tmp_path.name}"

    theirs = model.state_dict()
    ours = samples.split_qkv(samples.all_weights(reader))
    assert {their_name(name) for name in ours} == theirs.keys()
    for name, tensor in ours.items():
        rotated = name.endswith(("wq.weight", "wk.weight"))
        actual = half_split(tensor, 8) if rotated else tensor
        wanted = theirs[their_name(name)]
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0, msg=name)


ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize("name", ["", "lm_head.weight", ROTARY])
def test_the_folders_configuration_and_what_is_ignored(
    tmp_path: Path, name: str
) -> None:
    changes = {"head_dim": 16, "rms_norm_eps": 1e-6, "max_position_embeddings": 64}
    make_model(tie_word_embeddings=True, **changes).save_pretrained(tmp_path)
    if name:
        edit(tmp_path, {name: torch.ones(4 if name == ROTARY else (48, 32))})
    reader = open_weights(tmp_path)
    wanted = {"head_dim": 16, "norm_eps": 1e-6, "context": 64, "tied_embeddings": True}
    assert asdict(reader.config).items() >= wanted.items()
    assert list(reader.final()) == ["norm.weight"]


def test_a_missing_output_layer_configuration_or_file(tmp_path: Path) -> None:
    missing = "the tensor lm_head.weight is missing; config.json wants it"
    assert file_refusal(write(tmp_path, {"output.weight": None})) == missing
    reader = open_weights(write(tmp_path, {}))
    (tmp_path / SINGLE).unlink()
    absent = "cannot be read: No such file or directory"
    message = refusal(reader.embedding, error=WeightsError)
    assert message == f"{tmp_path / SINGLE}: {absent}"
    (write(tmp_path, {}) / CONFIG).unlink()
    assert file_refusal(tmp_path) == f"{CONFIG}: {absent}"


def test_missing_shard_and_wrong_index(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="12KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    (tmp_path / shards[1]).unlink()
    index = "model.safetensors.index.json"
    missing = f"the shard {shards[1]} is missing; {index} names {len(shards)}"
    assert file_refusal(tmp_path) == missing
    samples.write_json(tmp_path / index, {"weight_map": {"lm_head.weight": "a\0"}})
    null = f"{tmp_path}/a\\x00: cannot be read: embedded null byte"
    assert refusal(open_weights, tmp_path, error=WeightsError) == null
    other = "the shard '../a.safetensors' is not allowed; allowed: a file's name"
    for fields, message in (
        ({}, "the field weight_map is missing or empty"),
        ({"weight_map": {"lm_head.weight": "../a.safetensors"}}, other),
    ):
        samples.write_json(tmp_path / index, fields)
        assert file_refusal(tmp_path) == f"{index}: {message}"
