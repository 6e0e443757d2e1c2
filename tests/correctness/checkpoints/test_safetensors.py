from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llama_perf.checkpoints.open import open_weights
from llama_perf.checkpoints.safetensors import interleave
from llama_perf.errors import WeightsError
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    TINY,
    all_weights,
    one_line_refusal,
    write_json,
)


def make_model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    fields: dict[str, Any] = {**CONFIG_JSON, **changes}
    return LlamaForCausalLM(LlamaConfig(**fields))


def half_split(weight: Tensor, head_dim: int) -> Tensor:
    """The opposite of `interleave`, written row by row."""
    heads = weight.split(head_dim)
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    message = one_line_refusal(lambda folder: all_weights(open_weights(folder)), folder)
    return message.replace(f"{folder}/", "").replace(f"{folder}: ", "")


def edit(folder: Path, **changes: Tensor | None) -> None:
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        folder / "model.safetensors",
    )


@pytest.mark.parametrize("shard_size", ["1GB", "12KB"])
def test_reads_every_tensor(tmp_path: Path, shard_size: str) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "1GB")
    reader = open_weights(tmp_path)
    assert reader.config == TINY
    assert reader.source == f"safetensors:{tmp_path.name}"

    theirs = model.state_dict()
    assert torch.equal(reader.embedding(), theirs["model.embed_tokens.weight"])
    assert torch.equal(reader.final()["norm.weight"], theirs["model.norm.weight"])
    assert torch.equal(reader.final()["output.weight"], theirs["lm_head.weight"])
    for index in range(2):
        ours = reader.layer(index)
        q, k, v = ours.pop("attention.wqkv.weight").split((32, 16, 16))
        found = {
            "self_attn.q_proj": half_split(q, 8),
            "self_attn.k_proj": half_split(k, 8),
            "self_attn.v_proj": v,
            "self_attn.o_proj": ours.pop("attention.wo.weight"),
            "mlp.gate_proj": ours.pop("feed_forward.w1.weight"),
            "mlp.up_proj": ours.pop("feed_forward.w3.weight"),
            "mlp.down_proj": ours.pop("feed_forward.w2.weight"),
            "input_layernorm": ours.pop("attention_norm.weight"),
            "post_attention_layernorm": ours.pop("ffn_norm.weight"),
        }
        assert not ours
        for name, tensor in found.items():
            assert torch.equal(tensor, theirs[f"model.layers.{index}.{name}.weight"])


def test_interleave_pairs_the_halves_of_a_head() -> None:
    rows = torch.arange(12.0)[:, None].expand(12, 3)
    assert interleave(rows, head_dim=6)[:, 0].tolist() == [
        *(0, 3, 1, 4, 2, 5),
        *(6, 9, 7, 10, 8, 11),
    ]


def test_config_is_the_folders(tmp_path: Path) -> None:
    changes = {"head_dim": 16, "rms_norm_eps": 1e-6, "max_position_embeddings": 64}
    make_model(**changes).save_pretrained(tmp_path)
    config = open_weights(tmp_path).config
    assert (config.head_dim, config.norm_eps, config.context) == (16, 1e-6, 64)


def test_bfloat16_stays(tmp_path: Path) -> None:
    make_model().bfloat16().save_pretrained(tmp_path)
    dtypes = {tensor.dtype for tensor in all_weights(open_weights(tmp_path)).values()}
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize("stored", [False, True])
def test_tied_embeddings(tmp_path: Path, stored: bool) -> None:
    make_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    if stored:
        edit(tmp_path, **{"lm_head.weight": torch.ones(48, 32)})
    reader = open_weights(tmp_path)
    assert reader.config.tied_embeddings
    assert list(reader.final()) == ["norm.weight"]


def test_old_rotary_buffers_are_ignored(folder: Path) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, **{buffer: torch.ones(4)})
    assert open_weights(folder).config.n_layers == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.layers.1.mlp.up_proj.weight": None},
            "the tensor model.layers.1.mlp.up_proj.weight is missing;"
            " config.json wants it",
        ),
        (
            {"lm_head.weight": None},
            "the tensor lm_head.weight is missing; config.json wants it",
        ),
        (
            {"model.embed_tokens.weight": torch.ones(47, 32)},
            "model.embed_tokens.weight: shape (47, 32) is not allowed;"
            " config.json wants (48, 32)",
        ),
        (
            {"model.layers.0.self_attn.k_proj.bias": torch.ones(16)},
            "the tensor model.layers.0.self_attn.k_proj.bias is not allowed; biases"
            " are not supported",
        ),
        (
            {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)},
            "the tensor model.layers.0.self_attn.q_norm.weight is not allowed; a Llama"
            " model of 2 layers has no such tensor",
        ),
        (
            {"model.norm.weight": torch.ones(32, dtype=torch.float8_e4m3fn)},
            "model.norm.weight: dtype float8_e4m3fn is not allowed; allowed: float32,"
            " float16, bfloat16",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: dict[str, Tensor | None], message: str
) -> None:
    edit(folder, **change)
    assert refusal(folder) == message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(folder).startswith("model.safetensors: damaged or truncated: ")


def test_a_file_that_vanishes_after_opening(folder: Path) -> None:
    reader = open_weights(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError) as caught:
        reader.embedding()
    assert str(caught.value).startswith(
        f"{folder}/model.safetensors: model.embed_tokens.weight: damaged or truncated:"
    )


def test_attention_bias_in_the_configuration(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG_JSON, "attention_bias": True})
    assert refusal(folder) == (
        "config.json: attention_bias true is not allowed; allowed: false"
    )


def test_config_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder) == "config.json: cannot be read: No such file or directory"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path, max_shard_size="12KB")
    return tmp_path


def test_missing_shard(sharded: Path) -> None:
    shards = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    (sharded / shards[1]).unlink()
    assert refusal(sharded) == (
        f"the shard {shards[1]} is missing; model.safetensors.index.json names"
        f" {len(shards)}"
    )


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "the field weight_map is missing or empty"),
        (
            {"weight_map": {"lm_head.weight": "../a.safetensors"}},
            "the shard '../a.safetensors' is not allowed; allowed: a file's name",
        ),
    ],
)
def test_a_bad_index(sharded: Path, index: object, message: str) -> None:
    write_json(sharded / "model.safetensors.index.json", index)
    assert refusal(sharded) == f"model.safetensors.index.json: {message}"
