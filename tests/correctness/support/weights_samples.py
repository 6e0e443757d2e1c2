"""A tiny model for the tests of weights, and its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.reader import SyntheticWeights, WeightsReader
from llama_perf.errors import WeightsError
from llama_perf.llama.config import ModelConfig
from tests.correctness.support.errors import refusal

SIZES: Any = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 48}
TINY = ModelConfig(**SIZES, intermediate_size=64, head_dim=8)
CONFIG_JSON = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 48,
    "rms_norm_eps": 1e-5,
}
# Two thirds of 4 * 32, times 0.75, rounded up to 64.
PARAMS_JSON = {**SIZES, "multiple_of": 64, "ffn_dim_multiplier": 0.75}

_HUGGING_FACE_NAMES = {
    "tok_embeddings": "embed_tokens",
    "output.": "lm_head.",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hugging_face_name(name: str) -> str:
    for ours, theirs in _HUGGING_FACE_NAMES.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def tiny_weights(config: ModelConfig = TINY) -> SyntheticWeights:
    return SyntheticWeights(config, dtype=torch.float32, device=torch.device("cpu"))


def all_weights(reader: WeightsReader | None = None) -> dict[str, Tensor]:
    """Every tensor of a reader under Meta's names, `wqkv` fused."""
    reader = reader or tiny_weights()
    weights = {"tok_embeddings.weight": reader.embedding(), **reader.final()}
    for index in range(reader.config.n_layers):
        for name, tensor in reader.layer(index).items():
            weights[f"layers.{index}.{name}"] = tensor
    return weights


def split_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with `wq`, `wk` and `wv` apart."""
    apart = {}
    for name, tensor in weights.items():
        if name.endswith("wqkv.weight"):
            for part, rows in zip("qkv", tensor.split((32, 16, 16)), strict=True):
                apart[name.replace("wqkv", f"w{part}")] = rows.clone()
        else:
            apart[name] = tensor
    return apart


# How Meta's layers split their weights: ColumnParallelLinear, RowParallelLinear.
_SPLIT = {
    **dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0),
    **dict.fromkeys(("wo", "w2"), 1),
}


def consolidated(
    weights: dict[str, Tensor], count: int, embedding: int
) -> list[dict[str, Tensor]]:
    """What each of Meta's processes holds; the embedding is split by a dimension."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in weights.items():
        dim = _SPLIT.get(name.split(".")[-2])
        if name == "tok_embeddings.weight":
            dim = embedding
        pieces = [tensor] * count if dim is None else tensor.chunk(count, dim)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def assert_same(reader: WeightsReader, wanted: dict[str, Tensor]) -> None:
    actual = all_weights(reader)
    assert actual.keys() == wanted.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0, msg=name)


def write_json(path: Path, fields: object) -> None:
    path.write_text(json.dumps(fields), encoding="utf-8")


def read_all(path: Path) -> dict[str, Tensor]:
    return all_weights(open_weights(path))


def file_refusal(path: Path, read: Callable[[Path], object] = read_all) -> str:
    """The message with which `read` refuses what is at `path`."""
    message = refusal(read, path, error=WeightsError)
    for start in (f"{path}: ", f"{path}/", f"{path.parent}: "):
        message = message.replace(start, "")
    return message
