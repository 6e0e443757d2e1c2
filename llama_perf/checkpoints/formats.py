"""Files of weights in two formats: Hugging Face's safetensors, and GGUF.

Each format gives its names, its shapes and how a tensor is read. Knows nothing of how
a file was converted, of the tokenizer in it, or of other files in the folder.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_perf.checkpoints import config as configs
from llama_perf.checkpoints import rotated_rows
from llama_perf.checkpoints.architectures import ARCHITECTURES
from llama_perf.checkpoints.cut import WHOLE, Cut, Shape
from llama_perf.checkpoints.gguf_config import (
    KEPT,
    ROPE_FACTORS,
    gguf_config,
    rope_scaling,
)
from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.gguf_values import dequantized, values
from llama_perf.checkpoints.hub import folder_name, snapshot_of
from llama_perf.checkpoints.stored import StoredWeights
from llama_perf.errors import MissingFileError, WeightsError
from llama_perf.files import check_readable, is_absent
from llama_perf.llama.config import ModelConfig
from llama_perf.words import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_EMBEDDING = "tok_embeddings.weight"
# Meta's names, Hugging Face's, and those in a GGUF file.
_NAMES = (
    ("tok_embeddings", "model.embed_tokens", "token_embd"),
    ("norm", "model.norm", "output_norm"),
    ("output", "lm_head", "output"),
    ("attention.wq", "self_attn.q_proj", "attn_q"),
    ("attention.wk", "self_attn.k_proj", "attn_k"),
    ("attention.wv", "self_attn.v_proj", "attn_v"),
    ("attention.wo", "self_attn.o_proj", "attn_output"),
    ("feed_forward.w1", "mlp.gate_proj", "ffn_gate"),
    ("feed_forward.w2", "mlp.down_proj", "ffn_down"),
    ("feed_forward.w3", "mlp.up_proj", "ffn_up"),
    ("attention_norm", "input_layernorm", "attn_norm"),
    ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
    ("attention.q_norm", "self_attn.q_norm", "attn_q_norm"),
    ("attention.k_norm", "self_attn.k_norm", "attn_k_norm"),
)
_HUGGING_FACE = {ours: theirs for ours, theirs, _ in _NAMES}
_GGUF = {ours: theirs for ours, _, theirs in _NAMES}


def open_safetensors(folder: Path) -> StoredWeights:
    """Open a folder with `config.json` and safetensors, in one file or in shards.

    Query and key rows are put into the order of Meta's files (`rotated_rows`). A tensor
    is read when it is asked for, from a file opened only for it. Raises WeightsError.
    """
    path = folder / "config.json"
    if is_absent(path):
        absent = os.strerror(errno.ENOENT)
        raise MissingFileError(f"{path}: cannot be read: {absent}")
    config = configs.hugging_face_config(folder)
    files: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    weight_map = _weight_map(folder)
    for path in _shards(folder, weight_map):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                if name in files:
                    raise WeightsError(
                        f"{path}: the tensor {name} is in {files[name].name} as well"
                    )
                files[name] = path
                shapes[name] = tuple(file.get_slice(name).get_shape())
    for name in files if weight_map else ():
        if name not in weight_map:
            raise WeightsError(
                f"{folder / INDEX}: weight_map: the tensor {name} is missing; it is in"
                f" {files[name].name}"
            )
    for name, shard in weight_map.items():
        if name not in files or files[name].name != shard:
            own = files.get(name)
            place = (
                "no shard that it names has it"
                if own is None
                else f"it is in {own.name}"
            )
            raise WeightsError(
                f"{folder / INDEX}: weight_map: {name}: {shown(shard)} is not allowed;"
                f" {place}"
            )

    def read(name: str, cut: Cut = WHOLE) -> Tensor:
        with _opened(files[name], name) as file:
            if cut.is_whole:
                tensor: Tensor = file.get_tensor(name)
            else:
                stored = file.get_slice(name)
                tensor = torch.cat([stored[index] for index in cut.indices])
        return _interleaved(tensor, name, _HUGGING_FACE, config)

    return StoredWeights(
        path=folder,
        source=f"safetensors:{folder_name(folder)}",
        config=config,
        config_from="config.json",
        shapes=shapes,
        read=read,
        names=_HUGGING_FACE,
        block="model.layers",
        files=sorted(set(files.values())),
    )


def _interleaved(
    tensor: Tensor, name: str, names: Mapping[str, str], config: ModelConfig
) -> Tensor:
    """A tensor whose rows, if they are of queries or keys, were in halves of a head."""
    stem = name.rpartition(".")[0]
    rotated = any(stem.endswith(f".{names[part]}") for part in rotated_rows.PARTS)
    return rotated_rows.interleaved(tensor, config.head_dim) if rotated else tensor


@contextmanager
def _opened(path: Path, *name: str) -> Iterator[Any]:
    check_readable(path, error=WeightsError)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        where = ": ".join([str(path), *name])
        raise WeightsError(f"{where}: damaged or truncated: {error}") from None


def _weight_map(folder: Path) -> dict[str, object]:
    """Which file has a tensor, as the folder's index says; empty without an index."""
    index = folder / INDEX
    if is_absent(index):
        return {}
    weight_map = configs.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: the field weight_map is missing or empty")
    return weight_map


def _shards(folder: Path, weight_map: Mapping[str, object]) -> list[Path]:
    if not weight_map:
        return [folder / SINGLE]
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if name != Path(name).name:
            raise WeightsError(
                f"{folder / INDEX}: the shard {name!r} is not allowed; allowed: a"
                " file's name"
            )
        if is_absent(folder / name):
            stray = "" if is_absent(folder / SINGLE) else f"; {SINGLE} is not read"
            raise MissingFileError(
                f"{folder}: the shard {name} is missing; {INDEX} names {len(names)}"
                f"{stray}"
            )
    return [folder / name for name in names]


def open_gguf(path: Path) -> StoredWeights:
    """Open a GGUF file of a model of Llama's family; raises WeightsError.

    llama.cpp keeps query and key rows of some architectures in interleaved order
    already (`rotated_rows`) and folds Llama 3.1's RoPE scaling into a tensor of
    factors, from which the scaling is found again. Every tensor comes dequantized, in
    float32.
    """
    fields, stored = read_container(path, *KEPT, error=WeightsError)
    tensors = {tensor.name: tensor for tensor in stored}
    for name, tensor in tensors.items():
        _, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        try:
            dequantized(np.zeros((1, block_bytes), np.uint8), tensor.tensor_type)
        except NotImplementedError:
            raise WeightsError(
                f"{path}: {name}: type {tensor.tensor_type.name} is not allowed;"
                " allowed: what the gguf package can dequantize (F32, F16, BF16, Q8_0,"
                " Q4_0, Q4_K, ...)"
            ) from None
    shapes = {name: tuple(t.shape[::-1].tolist()) for name, t in tensors.items()}

    def read(name: str, cut: Cut = WHOLE) -> Tensor:
        tensor = values(tensors[name], cut)
        return _interleaved(tensor, name, _GGUF, config) if in_halves else tensor

    config, architecture = gguf_config(fields, shapes, path)
    in_halves = ARCHITECTURES[architecture].rotates_halves
    if ROPE_FACTORS in tensors:
        scaling = rope_scaling(read(ROPE_FACTORS), config, path)
        config = replace(config, rope_scaling=scaling)
    inside = f"{folder_name(path.parent)}/" if snapshot_of(path.parent) else ""
    return StoredWeights(
        path=path,
        source=f"gguf:{inside}{path.name}",
        config=config,
        config_from="its metadata",
        shapes=shapes,
        read=read,
        names=_GGUF,
        block="blk",
        files=[path],
    )
