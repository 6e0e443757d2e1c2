"""A GGUF file of the `llama` architecture, read with llama.cpp's `gguf` package.

llama.cpp keeps query and key rows in interleaved order already and folds Llama 3.1's
RoPE scaling into a tensor of factors, from which the scaling is found again. Every
tensor comes dequantized, in float32. Knows nothing of the tokenizer in the file.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import ReaderField, ReaderTensor
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from torch import Tensor

from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.stored import Stored, StoredWeights
from llama_perf.errors import SpecError, WeightsError
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.rotary import inverse_frequencies

_NAMES = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
    "attention.wq.weight": "blk.{}.attn_q.weight",
    "attention.wk.weight": "blk.{}.attn_k.weight",
    "attention.wv.weight": "blk.{}.attn_v.weight",
    "attention.wo.weight": "blk.{}.attn_output.weight",
    "feed_forward.w1.weight": "blk.{}.ffn_gate.weight",
    "feed_forward.w2.weight": "blk.{}.ffn_down.weight",
    "feed_forward.w3.weight": "blk.{}.ffn_up.weight",
    "attention_norm.weight": "blk.{}.attn_norm.weight",
    "ffn_norm.weight": "blk.{}.ffn_norm.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
_BUFFERS = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")


def open_gguf(path: Path) -> StoredWeights:
    """Open a GGUF file; raises WeightsError."""
    # Copy-on-write: torch refuses to wrap read-only arrays.
    reader = read_container(path, error=WeightsError, mode="c")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in tensors.values():
        _check_encoding(tensor, path)
    return StoredWeights(
        Stored(
            path=path,
            source=f"gguf:{path.name}",
            config=_config(_Metadata(reader.fields, path), tensors),
            config_from="its metadata",
            names=_NAMES,
            shapes={name: _shape(tensor) for name, tensor in tensors.items()},
            read=lambda name: _float32(tensors[name]),
            ignored=_BUFFERS,
        )
    )


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _float32(tensor: ReaderTensor) -> Tensor:
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))


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


class _Metadata:
    """Typed access to a file's fields, by their names without `llama.`."""

    def __init__(self, fields: Mapping[str, ReaderField], path: Path) -> None:
        self.path = path
        self._fields = fields
        architecture = self._contents("general.architecture")
        if architecture != "llama":
            raise self.error("general.architecture", architecture, "allowed: 'llama'")

    def _contents(self, name: str) -> Any:
        field = self._fields.get(name)
        return None if field is None else field.contents()

    def error(self, name: str, value: object, allowed: str) -> WeightsError:
        return WeightsError(
            f"{self.path}: {name}: {_short(value)} is not allowed; {allowed}"
        )

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._number(name, default)
        if not isinstance(value, int):
            raise self.error(f"llama.{name}", value, "allowed: one whole number")
        return value

    def decimal(self, name: str, default: float) -> float:
        value = self._number(name, default)
        # Stored as float32; this gives back the decimal number that was meant.
        return float(str(np.float32(value)))

    def _number(self, name: str, default: float | None) -> Any:
        value = self._contents(f"llama.{name}")
        value = default if value is None else value
        if value is None:
            raise WeightsError(f"{self.path}: the field llama.{name} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"llama.{name}", value, "allowed: one number")
        return value

    def vocab_size(self, embedding: ReaderTensor | None) -> int:
        tokens = self._fields.get("tokenizer.ggml.tokens")
        if tokens is not None:
            return len(tokens.data)
        return self.integer("vocab_size", _shape(embedding)[0] if embedding else None)

    def check_supported(self, head_dim: int) -> None:
        splits = self._contents("split.count")
        if splits not in (None, 0, 1):
            raise self.error(
                "split.count", splits, "merge the parts with llama-gguf-split --merge"
            )
        for name in ("attention.value_length", "rope.dimension_count"):
            if (size := self.integer(name, head_dim)) != head_dim:
                raise self.error(
                    f"llama.{name}", size, f"allowed: the head's size {head_dim}"
                )
        if experts := self.integer("expert_count", 0):
            raise self.error("llama.expert_count", experts, "allowed: 0")
        if (scale := self.decimal("rope.scale_linear", 1.0)) != 1:
            raise self.error("llama.rope.scale_linear", scale, "allowed: 1.0")
        kind = self._contents("llama.rope.scaling.type")
        if kind not in (None, "none"):
            raise self.error("llama.rope.scaling.type", kind, "allowed: 'none'")


def _config(metadata: _Metadata, tensors: Mapping[str, ReaderTensor]) -> ModelConfig:
    dim = metadata.integer("embedding_length")
    n_heads = metadata.integer("attention.head_count")
    head_dim = metadata.integer("attention.key_length", dim // max(n_heads, 1))
    metadata.check_supported(head_dim)
    try:
        config = ModelConfig(
            dim=dim,
            n_layers=metadata.integer("block_count"),
            n_heads=n_heads,
            n_kv_heads=metadata.integer("attention.head_count_kv", n_heads),
            intermediate_size=metadata.integer("feed_forward_length"),
            vocab_size=metadata.vocab_size(
                tensors.get(_NAMES["tok_embeddings.weight"])
            ),
            head_dim=head_dim,
            norm_eps=metadata.decimal("attention.layer_norm_rms_epsilon", 1e-5),
            rope_base=metadata.decimal("rope.freq_base", 10000.0),
            context=metadata.integer("context_length"),
            # llama.cpp's rule: a file without an output layer shares the embedding.
            tied_embeddings=_NAMES["output.weight"] not in tensors,
        )
    except SpecError as error:
        raise WeightsError(f"{metadata.path}: its metadata: {error}") from None
    if (factors := tensors.get(_ROPE_FACTORS)) is None:
        return config
    scaling = _rope_scaling(_float32(factors), config, metadata.path)
    return dataclasses.replace(config, rope_scaling=scaling)


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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
