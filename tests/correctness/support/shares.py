"""Shares of a model put together again, by what a layer is, not by how it is cut."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices.ranks import Rank
from llama_perf.llama.config import ModelConfig
from tests.correctness.support.weights_samples import (
    all_weights,
    consolidated,
    tiny_weights,
)

RANKS = (2, 3)
CONFIG = ModelConfig(
    dim=96,
    n_layers=2,
    n_heads=12,
    n_kv_heads=6,
    intermediate_size=288,
    vocab_size=96,
    head_dim=16,
)
"""It is shared by RANKS; halves of 288 columns are no whole blocks of 32."""
HUGGING_FACE = {
    "hidden_size": 96,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "intermediate_size": 288,
    "vocab_size": 96,
    "head_dim": 16,
}
"""Its sizes, but for the number of layers, which architectures choose."""


def split_qkv(
    weights: dict[str, Tensor], config: ModelConfig = CONFIG
) -> dict[str, Tensor]:
    """With queries, keys and values apart, as in all files but gpt-fast's."""
    heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    sizes = [count * config.head_dim for count in heads]
    apart = {}
    for name, tensor in weights.items():
        if "wqkv" in name:
            for part, rows in zip("qkv", tensor.split(sizes), strict=True):
                apart[name.replace("wqkv", f"w{part}")] = rows.clone()
        else:
            apart[name] = tensor
    return apart


def write_config(folder: Path, config: ModelConfig) -> None:
    fields = to_hugging_face(config)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def write_consolidated(
    folder: Path, config: ModelConfig, parts: int, embedding: int = 0
) -> None:
    """Synthetic weights in Meta's files; the embedding is split by a dimension."""
    write_config(folder, config)
    weights = split_qkv(all_weights(tiny_weights(config)), config)
    for number, part in enumerate(consolidated(weights, parts, embedding)):
        torch.save(part, folder / f"consolidated.{number:02}.pth")


def shares_of(reader: WeightsReader, count: int) -> list[WeightsReader]:
    return [sharded(reader, Rank(index, count)) for index in range(count)]


def assert_whole(reader: WeightsReader, count: int) -> None:
    """The weights of `count` shares are the bits of those of the whole model."""
    wanted = all_weights(reader)
    wanted.setdefault("output.weight", wanted["tok_embeddings.weight"])
    shares = shares_of(reader, count)
    weights = [all_weights(share) for share in shares]
    for own in weights:
        assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        pieces = [own[name] for own in weights]
        made = _united(name, pieces, shares[0].config)
        assert made.dtype == tensor.dtype
        assert torch.equal(made, tensor), name


def _united(name: str, pieces: Sequence[Tensor], share: ModelConfig) -> Tensor:
    *_, linear, kind = name.split(".")
    if linear == "wqkv":
        heads = (share.n_heads, share.n_kv_heads, share.n_kv_heads)
        sizes = [count * share.head_dim for count in heads]
        parts = zip(*(piece.split(sizes) for piece in pieces), strict=True)
        return torch.cat([torch.cat(part) for part in parts])
    if linear in ("w1", "w3", "output"):
        return torch.cat(tuple(pieces))
    if linear in ("wo", "w2") and kind == "weight":
        return torch.cat(tuple(pieces), 1)
    first, *others = pieces
    for other in others:
        # Each has all of it, or the first alone has a bias of a sum.
        same = torch.zeros_like(first) if linear in ("wo", "w2") else first
        assert torch.equal(other, same), name
    return first
