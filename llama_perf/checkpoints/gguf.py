"""A GGUF file of the `llama` architecture, read with llama.cpp's `gguf` package.

llama.cpp keeps query and key rows in interleaved order already and folds Llama 3.1's
RoPE scaling into a tensor of factors, from which the scaling is found again. Every
tensor comes dequantized, in float32. Knows nothing of the tokenizer in the file.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import ReaderField, ReaderTensor
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from torch import Tensor

from llama_perf.checkpoints.config import check_allowed, read_config
from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.reader import Shape, StoredWeights
from llama_perf.errors import WeightsError
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.layers import inverse_frequencies

_FIELDS = {
    "dim": "llama.embedding_length",
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv",
    "intermediate_size": "llama.feed_forward_length",
    "vocab_size": "llama.vocab_size",
    "head_dim": "llama.attention.key_length",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_base": "llama.rope.freq_base",
    "context": "llama.context_length",
}
# Fields that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "general.architecture": ("llama",),
    "llama.expert_count": (0,),
    "llama.rope.scale_linear": (1.0,),
    "llama.rope.scaling.type": ("none",),
}
_NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
}
_ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path) -> StoredWeights:
    """Open a GGUF file; raises WeightsError."""
    # Copy-on-write: torch refuses to wrap read-only arrays.
    reader = read_container(path, error=WeightsError, mode="c")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in tensors.values():
        _check_encoding(tensor, path)
    shapes = {name: tuple(t.shape[::-1].tolist()) for name, t in tensors.items()}

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))

    config = _config(reader.fields, shapes, path)
    if _ROPE_FACTORS in tensors:
        scaling = _rope_scaling(read(_ROPE_FACTORS), config, path)
        config = dataclasses.replace(config, rope_scaling=scaling)
    return StoredWeights(
        path=path,
        source=f"gguf:{path.name}",
        config=config,
        config_from="its metadata",
        shapes=shapes,
        read=read,
        names=_NAMES,
        block="blk",
    )


def _check_encoding(tensor: ReaderTensor, path: Path) -> None:
    kind = tensor.tensor_type
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
    except NotImplementedError:
        raise WeightsError(
            f"{path}: {tensor.name}: type {kind.name} is not allowed; allowed: what"
            " the gguf package can dequantize (F32, F16, BF16, Q8_0, Q4_0, Q4_K, ...)"
        ) from None


def _config(
    stored: Mapping[str, ReaderField], shapes: Mapping[str, Shape], path: Path
) -> ModelConfig:
    fields = {}
    for name, field in stored.items():
        if name.startswith(("llama.", "general.architecture", "split.count")):
            value = field.contents()
            # Stored as float32; this gives back the decimal number that was meant.
            decimal = isinstance(value, float)
            fields[name] = float(str(np.float32(value))) if decimal else value
    check_allowed(fields, _ALLOWED, source=str(path))
    if (parts := fields.get("split.count", 0)) not in (0, 1):
        raise WeightsError(
            f"{path}: split.count: {parts} is not allowed; merge the parts with"
            " llama-gguf-split --merge"
        )
    if "tokenizer.ggml.tokens" in stored:
        fields["llama.vocab_size"] = len(stored["tokenizer.ggml.tokens"].data)
    config = read_config(
        fields,
        _FIELDS,
        source=str(path),
        vocab_size=shapes.get("token_embd.weight", (None,))[0],
        # llama.cpp's rule: a file without an output layer shares the embedding.
        tied_embeddings="output.weight" not in shapes,
    )
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        # The head's size.
        check_allowed(fields, {name: (config.head_dim,)}, source=str(path))
    return config


def _rope_scaling(
    factors: Tensor, config: ModelConfig, path: Path
) -> RopeScaling | None:
    """The scaling whose division of every frequency is `factors` (head_dim / 2,)."""
    # The longest wavelength is stretched by the whole factor.
    fits = factors.shape == (config.head_dim // 2,)
    if fits and 1 <= (factor := float(factors.max())) < math.inf:
        scaling = RopeScaling(factor=factor)
        scaled = dataclasses.replace(config, rope_scaling=scaling)
        unscaled_freqs, scaled_freqs = (
            inverse_frequencies(variant, device=torch.device("cpu"))
            for variant in (config, scaled)
        )
        if torch.allclose(factors, unscaled_freqs / scaled_freqs, rtol=1e-3):
            return None if factor == 1 else scaling
    raise WeightsError(
        f"{path}: {_ROPE_FACTORS}: these RoPE factors are not allowed; allowed: those"
        " of Llama 3.1 and 3.2 (low 1, high 4, original context 8192)"
    )
