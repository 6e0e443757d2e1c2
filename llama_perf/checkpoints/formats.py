"""Files of weights in three formats: `.pth`, Hugging Face's safetensors, and GGUF.

Each format gives its names, its shapes and how a tensor is read. Knows nothing of how
a file was converted, of the tokenizer in it, or of other files in the folder.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_perf.checkpoints import archive, rotated_rows
from llama_perf.checkpoints import config as configs
from llama_perf.checkpoints.architectures import ARCHITECTURES
from llama_perf.checkpoints.gguf_config import (
    KEPT,
    ROPE_FACTORS,
    gguf_config,
    rope_scaling,
)
from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.reader import Shape, StoredWeights
from llama_perf.checkpoints.saved import Saved, check_content, read_saved
from llama_perf.checkpoints.saved_tensors import check_tensors
from llama_perf.errors import WeightsError
from llama_perf.files import check_readable, is_absent
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.registry import import_all

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


def open_pth(path: Path) -> StoredWeights:
    """Open a `.pth` file; its configuration is looked for in the same folder.

    It holds a dict of tensors in Meta's names, as `consolidated.00.pth` does, or those
    of gpt-fast and torchao's benchmark, with `wqkv` fused; `save_model`'s are quantized
    too. A pickle can ask for code to be run: nothing but tensors is ever unpickled. The
    file is mapped, so that only what is read comes into memory (one in the format of
    torch before 1.6 cannot be and is read completely). Raises WeightsError.
    """
    rows = partial(_embedding_rows, path)
    config, config_from = configs.folder_config(path.parent, rows)
    saved = read_saved(path.parent)
    if saved is not None and saved.scheme is not None:
        import_all()
    check_readable(path, error=WeightsError)
    is_zip = zipfile.is_zipfile(path)
    loaded = _unpickle(path, saved, mmap=is_zip)
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        # The stories checkpoints of llama2.c keep the weights among other entries.
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(
            f"{path}: {type(loaded).__name__} is not allowed; allowed: a dict of"
            " tensors, at least one"
        )
    tensors = {str(name): value for name, value in loaded.items()}
    check_tensors(tensors, saved, path)
    if saved is not None:
        check_content(path)
    check_data = cache(archive.check_data) if is_zip else lambda _: None

    def read(name: str) -> Tensor:
        check_data(path)
        tensor: Tensor = tensors[name].detach()
        return tensor

    output = tensors.get("output.weight")
    if output is not None and is_unquantized(output):
        # What the file holds decides: a tied model's may have both names for one
        # storage, and one with an output layer of its own must not lose it.
        embedding = tensors.get(_EMBEDDING)
        shared = embedding is not None and output.data_ptr() == embedding.data_ptr()
        config = replace(config, tied_embeddings=shared)
    source = f"pth:{path.absolute().parent.name}"
    return StoredWeights(
        path=path,
        source=source if saved is None else f"{source} ({saved.origin.summary})",
        config=config,
        config_from=config_from,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        read=read,
        names={},
        block="layers",
        files=[path],
        saved=saved,
        own_output=output is not None and not is_unquantized(output),
    )


def _embedding_rows(path: Path) -> int:
    """The size of the vocabulary, where the configuration leaves it open."""
    check_readable(path, error=WeightsError)
    loaded = _unpickle(path, None, mmap=zipfile.is_zipfile(path))
    embedding = loaded.get(_EMBEDDING) if isinstance(loaded, dict) else None
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        missing = f"the tensor {_EMBEDDING} is missing; params.json wants it"
        raise WeightsError(f"{path}: {missing}")
    return len(embedding)


def _unpickle(path: Path, saved: Saved | None, *, mmap: bool) -> Any:
    if mmap:
        archive.check_small_records(path)
    problem = (
        "damaged, truncated, or no checkpoint; nothing in it was executed; allowed: a"
        " file that torch.save wrote"
    )
    try:
        # torch warns of what is refused or read below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if (match := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            why = "which can run code; nothing was executed; allowed: a dict of tensors"
            if match[1].startswith(("torchao.", "llama_perf.")):
                why = (
                    "a quantized tensor; allowed: unquantized tensors, or these with"
                    " the config.json that save_model wrote"
                    if saved is None or saved.scheme is None
                    else "which these versions do not have; it was saved with torchao"
                    f" {saved.torchao} and llama-perf {saved.llama_perf}"
                )
            problem = f"refused: it asks for {match[1]}, {why}"
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        pass
    raise WeightsError(f"{path}: {problem}")


def open_safetensors(folder: Path) -> StoredWeights:
    """Open a folder with `config.json` and safetensors, in one file or in shards.

    Query and key rows are put into the order of Meta's files (`rotated_rows`). A tensor
    is read when it is asked for, from a file opened only for it. Raises WeightsError.
    """
    config = configs.hugging_face_config(folder)
    files: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for path in _shards(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                if name in files:
                    raise WeightsError(
                        f"{path}: the tensor {name} is in {files[name].name} as well"
                    )
                files[name] = path
                shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(name: str) -> Tensor:
        with _opened(files[name], name) as file:
            tensor: Tensor = file.get_tensor(name)
        return _interleaved(tensor, name, _HUGGING_FACE, config)

    return StoredWeights(
        path=folder,
        source=f"safetensors:{folder.absolute().name}",
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


def _shards(folder: Path) -> list[Path]:
    if not is_absent(folder / SINGLE):
        return [folder / SINGLE]
    index = folder / INDEX
    shards = configs.read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{index}: the field weight_map is missing or empty")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if name != Path(name).name:
            raise WeightsError(
                f"{index}: the shard {name!r} is not allowed; allowed: a file's name"
            )
        if is_absent(folder / name):
            raise WeightsError(
                f"{folder}: the shard {name} is missing; {INDEX} names {len(names)}"
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
            _dequantized(np.zeros((1, block_bytes), np.uint8), tensor.tensor_type)
        except NotImplementedError:
            raise WeightsError(
                f"{path}: {name}: type {tensor.tensor_type.name} is not allowed;"
                " allowed: what the gguf package can dequantize (F32, F16, BF16, Q8_0,"
                " Q4_0, Q4_K, ...)"
            ) from None
    shapes = {name: tuple(t.shape[::-1].tolist()) for name, t in tensors.items()}

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        values = torch.from_numpy(_dequantized(tensor.data, tensor.tensor_type))
        return _interleaved(values, name, _GGUF, config) if in_halves else values

    config, architecture = gguf_config(fields, shapes, path)
    in_halves = ARCHITECTURES[architecture].rotates_halves
    if ROPE_FACTORS in tensors:
        scaling = rope_scaling(read(ROPE_FACTORS), config, path)
        config = replace(config, rope_scaling=scaling)
    return StoredWeights(
        path=path,
        source=f"gguf:{path.name}",
        config=config,
        config_from="its metadata",
        shapes=shapes,
        read=read,
        names=_GGUF,
        block="blk",
        files=[path],
    )


def _dequantized(data: Any, kind: GGMLQuantizationType) -> Any:
    # Damaged scales may be infinite; what is not finite is found where it is used.
    with np.errstate(all="ignore"):
        return dequantize(data, kind)
