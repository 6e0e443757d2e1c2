"""A checkpoint's tensors, under whatever names, as a WeightsReader.

The one place where a checkpoint is held against its configuration and where
separate query, key and value projections are fused. Every tensor's name and shape is
checked when a checkpoint is opened, before any data is read. Knows no file format:
each of those hands in its names, its shapes and how a tensor is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_perf.checkpoints.reader import final_shapes, layer_shapes
from llama_perf.checkpoints.saved import Saved
from llama_perf.errors import WeightsError
from llama_perf.llama.config import ModelConfig

Shape = tuple[int, ...]

_QKV = "attention.wqkv.weight"
_SEPARATE = ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight")
_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The contents of one checkpoint.

    `names` maps Meta's names, those of a block without their `layers.N.`, to the
    checkpoint's own, where `{}` stands for the layer. `shapes` has every tensor of
    the checkpoint under its own name, in torch's order of dimensions, and
    `read(own_name)` gives one of them. `config_from` tells a user where the
    configuration was found; tensors that match `ignored` are known not to be weights.
    `saved` is what `save_model` wrote beside them; `own_output` says that a tied model
    stores its output layer by itself, since that is quantized and its embedding is not.
    """

    path: Path
    source: str
    config: ModelConfig
    config_from: str
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    ignored: re.Pattern[str]
    saved: Saved | None = None
    own_output: bool = False


class StoredWeights:
    """The WeightsReader of a checkpoint.

    Raises WeightsError if a tensor is missing, has another shape than the
    configuration wants, or has no place in a Llama model.
    """

    def __init__(self, stored: Stored) -> None:
        self.config = stored.config
        self.source = stored.source
        self.saved = stored.saved
        self._stored = stored
        self._fused = _QKV in stored.names and self._own(_QKV, 0) in stored.shapes
        self._check()

    def embedding(self) -> Tensor:
        """See WeightsReader."""
        return self._read("tok_embeddings.weight")

    def layer(self, index: int) -> dict[str, Tensor]:
        """See WeightsReader."""
        assert 0 <= index < self.config.n_layers, f"there is no layer {index}"
        return {
            name: self._qkv(index) if name == _QKV else self._read(name, index)
            for name, _ in layer_shapes(self.config)
        }

    def final(self) -> dict[str, Tensor]:
        """See WeightsReader."""
        return {name: self._read(name) for name, _ in self._final_shapes()}

    def _qkv(self, index: int) -> Tensor:
        if self._fused:
            return self._read(_QKV, index)
        return torch.cat([self._read(name, index) for name in _SEPARATE])

    def _own(self, name: str, layer: int | None = None) -> str:
        return self._stored.names[name].format(layer)

    def _read(self, name: str, layer: int | None = None) -> Tensor:
        own = self._own(name, layer)
        tensor = self._stored.read(own)
        if tensor.dtype not in _DTYPES:
            raise WeightsError(
                f"{self._stored.path}: {own}: dtype"
                f" {str(tensor.dtype).removeprefix('torch.')} is not allowed;"
                f" allowed: {', '.join(_DTYPES.values())}"
            )
        return tensor

    def _wanted(self) -> Iterator[tuple[str, Shape]]:
        config = self.config
        yield self._own("tok_embeddings.weight"), (config.vocab_size, config.dim)
        for index in range(config.n_layers):
            for name, shape in layer_shapes(config):
                if name == _QKV and not self._fused:
                    for part, rows in zip(_SEPARATE, _qkv_rows(config), strict=True):
                        yield self._own(part, index), (rows, config.dim)
                else:
                    yield self._own(name, index), shape
        for name, shape in self._final_shapes():
            yield self._own(name), shape

    def _final_shapes(self) -> Iterator[tuple[str, Shape]]:
        tied = self.config.tied_embeddings and not self._stored.own_output
        return final_shapes(dataclasses.replace(self.config, tied_embeddings=tied))

    def _check(self) -> None:
        stored, wanted = self._stored, dict(self._wanted())
        if biases := [name for name in stored.shapes if name.endswith(".bias")]:
            raise WeightsError(
                f"{stored.path}: the tensor {_first(biases)} is not allowed; biases"
                " are not supported"
            )
        if missing := [name for name in wanted if name not in stored.shapes]:
            raise WeightsError(
                f"{stored.path}: the tensor {_first(missing)} is missing;"
                f" {stored.config_from} wants it"
            )
        for name, shape in wanted.items():
            if stored.shapes[name] != shape:
                raise WeightsError(
                    f"{stored.path}: {name}: shape {stored.shapes[name]} is not"
                    f" allowed; {stored.config_from} wants {shape}"
                )
        # A tied model's file may repeat its embedding as the output layer.
        known = {*wanted, self._own("output.weight")}
        if unexpected := [
            name
            for name in stored.shapes
            if name not in known and not stored.ignored.fullmatch(name)
        ]:
            raise WeightsError(
                f"{stored.path}: the tensor {_first(unexpected)} is not allowed;"
                f" a Llama model of {self.config.n_layers} layers has no such tensor"
            )


def _qkv_rows(config: ModelConfig) -> tuple[int, int, int]:
    kv_rows = config.n_kv_heads * config.head_dim
    return config.n_heads * config.head_dim, kv_rows, kv_rows


def _first(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more}"
