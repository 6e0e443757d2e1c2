"""Hugging Face folders that transformers wrote: read, and refused with a reason."""

import json
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
from llama_perf.measure.prepare import prepare_row
from llama_perf.rows.spec import RowSpec
from tests.correctness.checkpoints import test_pth
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import file_refusal, hugging_face_name

CONFIG, SINGLE = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
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
    model = make_model(tie_word_embeddings=True, **changes)
    model.save_pretrained(tmp_path)
    if name:
        embedding = model.get_input_embeddings().weight.clone()
        edit(tmp_path, {name: torch.ones(4) if name == ROTARY else embedding})
    reader = open_weights(tmp_path)
    wanted = {"head_dim": 16, "norm_eps": 1e-6, "context": 64, "tied_embeddings": True}
    assert asdict(reader.config).items() >= wanted.items()
    assert list(reader.final()) == ["norm.weight"]


def test_an_output_layer_that_differs_from_the_embedding_it_is_tied_to(
    tmp_path: Path,
) -> None:
    make_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    edit(tmp_path, {their_name("output.weight"): torch.ones(48, 32)})
    message = refusal(open_weights(tmp_path).final, error=WeightsError)
    assert message == (
        f"{tmp_path}: lm_head.weight differs from model.embed_tokens.weight, which"
        " config.json ties to it; allowed: the same values"
    )


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
    missing = f"the shard {shards[1]} is missing; {INDEX} names {len(shards)}"
    assert file_refusal(tmp_path) == missing
    (tmp_path / SINGLE).touch()
    assert file_refusal(tmp_path) == f"{missing}; {SINGLE} is not read"
    samples.write_json(tmp_path / INDEX, {"weight_map": {"lm_head.weight": "a\0"}})
    null = f"{tmp_path}/a\\x00: cannot be read: embedded null byte"
    assert refusal(open_weights, tmp_path, error=WeightsError) == null
    other = "the shard '../a.safetensors' is not allowed; allowed: a file's name"
    for fields, message in (
        ({}, "the field weight_map is missing or empty"),
        ({"weight_map": {"lm_head.weight": "../a.safetensors"}}, other),
    ):
        samples.write_json(tmp_path / INDEX, fields)
        assert file_refusal(tmp_path) == f"{INDEX}: {message}"


def test_an_index_that_does_not_fit_its_shards(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="12KB")
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    files = index["weight_map"]
    # A shard that is named for another tensor as well.
    name, own = next(
        (name, file)
        for name, file in files.items()
        if list(files.values()).count(file) > 1
    )
    other = next(file for file in files.values() if file != own)
    for change, message in (
        ({name: other}, f"{name}: '{other}' is not allowed; it is in {own}"),
        ({"x": other}, f"x: '{other}' is not allowed; no shard that it names has it"),
    ):
        changed = {**index, "weight_map": files | change}
        samples.write_json(tmp_path / INDEX, changed)
        assert file_refusal(tmp_path) == f"{INDEX}: weight_map: {message}"
    others = {key: file for key, file in files.items() if key != name}
    samples.write_json(tmp_path / INDEX, {**index, "weight_map": others})
    missing = f"the tensor {name} is missing; it is in {own}"
    assert file_refusal(tmp_path) == f"{INDEX}: weight_map: {missing}"


def test_the_index_is_followed_and_what_is_beside_it_is_noted(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="12KB")
    wanted = samples.all_weights(open_weights(tmp_path))
    assert open_weights(tmp_path).notes == ()
    # A whole model, with other weights.
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**samples.CONFIG_JSON)).save_pretrained(
        tmp_path / "other"
    )
    (tmp_path / "other" / SINGLE).rename(tmp_path / SINGLE)
    reader = open_weights(tmp_path)
    samples.assert_same(reader, wanted)
    followed = f"{tmp_path.name}: {INDEX} is followed; beside it are not read:"
    assert reader.notes == (f"{followed} {SINGLE}",)
    for name in (
        "model-00009-of-00009.safetensors",
        "pytorch_model.bin",
        "z.safetensors",
    ):
        (tmp_path / name).touch()
    reader = open_weights(tmp_path)
    samples.assert_same(reader, wanted)
    assert reader.notes == (
        f"{followed} model-00009-of-00009.safetensors, {SINGLE}, pytorch_model.bin and"
        " 1 more",
    )
    row = RowSpec(model=str(tmp_path), dtype="float32", device="cpu")
    told: list[str] = []
    prepared = prepare_row(row, notify=told.append)
    assert prepared.weights_notes == reader.notes
    assert reader.notes[0] in told


def test_the_file_that_comes_first_is_noted_too(tmp_path: Path) -> None:
    write(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").touch()
    first = f"{tmp_path.name}: {{}} is read; beside it are not read: {{}}"
    notes = open_weights(tmp_path).notes
    assert notes == (first.format(SINGLE, "adapter_model.safetensors"),)
    test_pth.write(tmp_path, {})
    for name in ("consolidated.00.pth", "consolidated.01.pth", "tokenizer.gguf"):
        (tmp_path / name).touch()
    notes = open_weights(tmp_path).notes
    unread = "adapter_model.safetensors, consolidated.00.pth, consolidated.01.pth"
    assert notes == (first.format("model.pth", f"{unread} and 1 more"),)
    # Who names a file has chosen.
    assert open_weights(tmp_path / "model.pth").notes == ()
