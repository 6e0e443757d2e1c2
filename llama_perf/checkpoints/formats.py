"""Files of weights in two formats: Hugging Face's safetensors, and GGUF.

Each format gives its names, its shapes and how a tensor is read. Knows nothing of how
a file was converted, of the tokenizer in it, or of other files in the folder.
"""

import errno
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_perf.checkpoints import config as configs
from llama_perf.checkpoints.gguf_reader import Fields, read_container
from llama_perf.checkpoints.hub import folder_name, snapshot_of
from llama_perf.checkpoints.reader import Shape, StoredWeights
from llama_perf.errors import MissingFileError, WeightsError
from llama_perf.files import check_readable, is_absent
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.layers import inverse_frequencies
from llama_perf.words import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
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
)


def open_safetensors(folder: Path) -> StoredWeights:
    """Open a folder with `config.json` and safetensors, in one file or in shards.

    Hugging Face rotates the first half of a head against its second half, so query and
    key rows are put back into the interleaved order of Meta's files. A tensor is read
    when it is asked for, from a file opened only for it. Raises WeightsError.
    """
    path = folder / "config.json"
    if is_absent(path):
        absent = os.strerror(errno.ENOENT)
        raise MissingFileError(f"{path}: cannot be read: {absent}")
    config = configs.from_hugging_face(configs.read_json(path), source=str(path))
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

    def read(name: str) -> Tensor:
        with _opened(files[name], name) as file:
            tensor: Tensor = file.get_tensor(name)
        if not name.endswith((".q_proj.weight", ".k_proj.weight")):
            return tensor
        # In each head, rows i and i + head_dim / 2 become rows 2i and 2i + 1. The
        # converter in Hugging Face transformers does the opposite.
        halves = tensor.reshape(-1, 2, config.head_dim // 2, tensor.shape[1])
        return halves.transpose(1, 2).reshape(tensor.shape)

    return StoredWeights(
        path=folder,
        source=f"safetensors:{folder_name(folder)}",
        config=config,
        config_from="config.json",
        shapes=shapes,
        read=read,
        names={ours: theirs for ours, theirs, _ in _NAMES},
        block="model.layers",
        files=sorted(set(files.values())),
    )


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


# Fields of a GGUF file that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "general.architecture": ("llama",),
    "llama.expert_count": (0,),
    "llama.rope.scale_linear": (1.0,),
    "llama.rope.scaling.type": ("none",),
}
_TOKENS = "tokenizer.ggml.tokens"
_ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path) -> StoredWeights:
    """Open a GGUF file of the `llama` architecture; raises WeightsError.

    llama.cpp keeps query and key rows in interleaved order already and folds Llama
    3.1's RoPE scaling into a tensor of factors, from which the scaling is found again.
    Every tensor comes dequantized, in float32.
    """
    kinds = ("llama.", "general.architecture", "split.count", _TOKENS)
    fields, stored = read_container(path, *kinds, error=WeightsError)
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
        return torch.from_numpy(_dequantized(tensor.data, tensor.tensor_type))

    config = _gguf_config(fields, shapes, path)
    if _ROPE_FACTORS in tensors:
        scaling = _rope_scaling(read(_ROPE_FACTORS), config, path)
        config = replace(config, rope_scaling=scaling)
    inside = f"{folder_name(path.parent)}/" if snapshot_of(path.parent) else ""
    return StoredWeights(
        path=path,
        source=f"gguf:{inside}{path.name}",
        config=config,
        config_from="its metadata",
        shapes=shapes,
        read=read,
        names={ours: theirs for ours, _, theirs in _NAMES},
        block="blk",
        files=[path],
    )


def _dequantized(data: Any, kind: GGMLQuantizationType) -> Any:
    # Damaged scales may be infinite; what is not finite is found where it is used.
    with np.errstate(all="ignore"):
        return dequantize(data, kind)


def _gguf_config(
    stored: Fields, shapes: Mapping[str, Shape], path: Path
) -> ModelConfig:
    # Floats are stored as float32; this gives back the decimal number that was meant.
    with np.errstate(over="ignore"):
        fields: dict[str, Any] = {
            name: float(str(np.float32(value))) if isinstance(value, float) else value
            for name, (value, _) in stored.items()
        }
    source = str(path)
    configs.check_allowed(fields, _ALLOWED, source=source)
    if (parts := fields.get("split.count", 0)) not in (0, 1):
        raise WeightsError(
            f"{path}: split.count: {shown(parts)} is not allowed; merge the parts with"
            " llama-gguf-split --merge"
        )
    if (tokens := fields.get(_TOKENS)) is not None:
        if not isinstance(tokens, list):
            raise WeightsError(f"{path}: {_TOKENS}: allowed: a list of strings")
        fields["llama.vocab_size"] = len(tokens)
    config = configs.read_config(
        configs.model_config,
        fields,
        configs.GGUF_FIELDS,
        source=source,
        vocab_size=shapes.get("token_embd.weight", (None,))[0],
        # llama.cpp's rule: a file without an output layer shares the embedding.
        tied_embeddings="output.weight" not in shapes,
    )
    head_fields = ("llama.attention.value_length", "llama.rope.dimension_count")
    allowed = dict.fromkeys(head_fields, (config.head_dim,))
    configs.check_allowed(fields, allowed, source=source)
    return config


def _rope_scaling(
    factors: Tensor, config: ModelConfig, path: Path
) -> RopeScaling | None:
    """The scaling whose division of every frequency is `factors` (head_dim / 2,)."""
    # The longest wavelength is stretched by the whole factor.
    fits = factors.shape == (config.head_dim // 2,)
    if fits and 1 <= (factor := float(factors.max())) < math.inf:
        scaling = RopeScaling(factor=factor)
        unscaled_freqs, scaled_freqs = (
            inverse_frequencies(variant, device=torch.device("cpu"))
            for variant in (config, replace(config, rope_scaling=scaling))
        )
        if torch.allclose(factors, unscaled_freqs / scaled_freqs, rtol=1e-3):
            return None if factor == 1 else scaling
    raise WeightsError(
        f"{path}: {_ROPE_FACTORS}: these RoPE factors are not allowed; allowed: those"
        " of Llama 3.1 and 3.2 (low 1, high 4, original context 8192)"
    )
