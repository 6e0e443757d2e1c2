"""The one face of every source of weights.

Names are Meta's (`tok_embeddings.weight`, `layers.0.attention.wqkv.weight`, ...) and
query and key rows are in the order of RoPE on interleaved pairs. A checkpoint's
tensors come on the CPU in the dtype they are stored in (GGUF's in float32, since it
stores most of them quantized); synthetic ones in the dtype and on the device asked
for. Quantized tensors come only from what `save_model` wrote. Knows nothing of files
or of the model's modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from llama_perf.checkpoints.saved import Saved
from llama_perf.llama.config import ModelConfig


class WeightsReader(Protocol):
    """A checkpoint, or a generator of synthetic weights.

    Every call reads anew and keeps nothing, so one layer at a time is in memory. A
    tensor may alias a private map of the file: it stays valid for as long as it is
    kept, writing to it never reaches the file, and whoever measures copies it, or
    the disk is read while the clock runs.
    """

    config: ModelConfig
    source: str
    """The weights as a result records them: "synthetic", or "<format>:<name>".

    The name is the file's for a GGUF, the folder's for a `model.pth` or a Hugging
    Face folder. A folder of `save_model` says in brackets what is in it:
    "pth:<name> (int8wo, native, from gguf:<file>)".
    """

    saved: Saved | None
    """The record that `save_model` wrote with the weights; None for all others."""

    def embedding(self) -> torch.Tensor:
        """`tok_embeddings.weight`, (vocab_size, dim)."""
        ...

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """The weights of one block, under the names inside the block.

        `attention.wqkv.weight` (qkv_size, dim), `attention.wo.weight` (dim, n_heads *
        head_dim), `feed_forward.w1.weight` and `.w3.weight` (intermediate_size, dim),
        `feed_forward.w2.weight` (dim, intermediate_size), `attention_norm.weight` and
        `ffn_norm.weight` (dim,).
        """
        ...

    def final(self) -> dict[str, torch.Tensor]:
        """`norm.weight` (dim,) and, unless tied, `output.weight` (vocab_size, dim).

        A tied model that was quantized and saved has its own `output.weight` too.
        """
        ...


def layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of one block's weights, in the model's order."""
    dim, hidden = config.dim, config.intermediate_size
    yield "attention.wqkv.weight", (config.qkv_size, dim)
    yield "attention.wo.weight", (dim, config.n_heads * config.head_dim)
    yield "feed_forward.w1.weight", (hidden, dim)
    yield "feed_forward.w3.weight", (hidden, dim)
    yield "feed_forward.w2.weight", (dim, hidden)
    yield "attention_norm.weight", (dim,)
    yield "ffn_norm.weight", (dim,)


def final_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The same for the weights after the last block."""
    yield "norm.weight", (config.dim,)
    if not config.tied_embeddings:
        yield "output.weight", (config.vocab_size, config.dim)
