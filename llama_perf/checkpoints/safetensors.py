"""A Hugging Face folder: `config.json` and safetensors, in one file or in shards.

Hugging Face rotates the first half of a head against its second half, so query and
key rows are put back into the interleaved order of Meta's files. A tensor is read
when it is asked for, from a file opened only for it. Knows nothing of other files
in the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_perf.checkpoints.config import hugging_face_config, read_json
from llama_perf.checkpoints.stored import Shape, Stored, StoredWeights
from llama_perf.errors import WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention.wq.weight": "model.layers.{}.self_attn.q_proj.weight",
    "attention.wk.weight": "model.layers.{}.self_attn.k_proj.weight",
    "attention.wv.weight": "model.layers.{}.self_attn.v_proj.weight",
    "attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "feed_forward.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "feed_forward.w2.weight": "model.layers.{}.mlp.down_proj.weight",
    "feed_forward.w3.weight": "model.layers.{}.mlp.up_proj.weight",
    "attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
}
_BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_ROTATED = (".q_proj.weight", ".k_proj.weight")


def open_hugging_face(folder: Path) -> StoredWeights:
    """Open a folder that holds `config.json` and safetensors; raises WeightsError."""
    config = hugging_face_config(folder / "config.json")
    files: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for path in _files(folder):
        for name, shape in _header(path):
            files[name], shapes[name] = path, shape

    def read(name: str) -> Tensor:
        tensor = _tensor(files[name], name)
        if name.endswith(_ROTATED):
            return interleave(tensor, head_dim=config.head_dim)
        return tensor

    return StoredWeights(
        Stored(
            path=folder,
            source=f"safetensors:{folder.absolute().name}",
            config=config,
            config_from="config.json",
            names=_NAMES,
            shapes=shapes,
            read=read,
            ignored=_BUFFERS,
        )
    )


def interleave(weight: Tensor, *, head_dim: int) -> Tensor:
    """Rows of (heads * head_dim, dim) from half-split to interleaved RoPE order.

    In each head, rows i and i + head_dim / 2 become rows 2i and 2i + 1. The converter
    in Hugging Face transformers does the opposite.
    """
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{index}: the field weight_map is missing or empty")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if name != Path(name).name:
            raise WeightsError(
                f"{index}: the shard {name!r} is not allowed; allowed: a file's name"
            )
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder}: the shard {name} is missing; {INDEX} names {len(names)}"
            )
    return [folder / name for name in names]


def _header(path: Path) -> Iterator[tuple[str, Shape]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                yield name, tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or truncated: {error}") from None


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: {name}: damaged or truncated: {error}") from None
    return tensor
