"""A Hugging Face folder: `config.json` and safetensors, in one file or in shards.

Hugging Face rotates the first half of a head against its second half, so query and
key rows are put back into the interleaved order of Meta's files. A tensor is read
when it is asked for, from a file opened only for it. Knows nothing of other files
in the folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_perf.checkpoints.config import from_hugging_face, read_json
from llama_perf.checkpoints.reader import Shape, StoredWeights
from llama_perf.errors import WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
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
_ROTATED = (".q_proj.weight", ".k_proj.weight")


def open_hugging_face(folder: Path) -> StoredWeights:
    """Open a folder that holds `config.json` and safetensors; raises WeightsError."""
    path = folder / "config.json"
    config = from_hugging_face(read_json(path), source=str(path))
    files: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                files[name] = path
                shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(name: str) -> Tensor:
        with _opened(files[name], name) as file:
            tensor: Tensor = file.get_tensor(name)
        if name.endswith(_ROTATED):
            return interleave(tensor, head_dim=config.head_dim)
        return tensor

    return StoredWeights(
        path=folder,
        source=f"safetensors:{folder.absolute().name}",
        config=config,
        config_from="config.json",
        shapes=shapes,
        read=read,
        names=_NAMES,
        block="model.layers",
    )


@contextmanager
def _opened(path: Path, *name: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        where = ": ".join([str(path), *name])
        raise WeightsError(f"{where}: damaged or truncated: {error}") from None


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
