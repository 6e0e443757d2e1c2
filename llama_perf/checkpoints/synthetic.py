"""Synthetic weights: random, seeded, and sane through the deepest of models.

For rows whose real weights are not at hand: what a row costs depends on shapes and
dtypes, not on values. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from llama_perf.checkpoints.reader import final_shapes, layer_shapes
from llama_perf.checkpoints.saved import Saved
from llama_perf.llama.config import ModelConfig

# These add to the residual stream, twice a layer; scaled so that the sum over all
# layers keeps the variance of one of them (the initialisation of GPT-2).
_RESIDUAL = ("attention.wo.weight", "feed_forward.w2.weight")
_NORM_NOISE = 0.02


class SyntheticWeights:
    """The WeightsReader of a model that has no file.

    Made directly on `device` in `dtype`. The values depend on the seed, the tensor's
    name, its shape, the dtype and the device's type, not on the order of reading; a
    CUDA device's differ from the CPU's. Normal, with standard deviation
    1 / sqrt(fan-in) for projections and 1 / sqrt(dim) for the embedding, so that
    logits have a standard deviation near 1 whether it is tied or not.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.source = "synthetic"
        self.saved: Saved | None = None
        self._dtype = dtype
        self._device = device
        self._seed = seed

    def embedding(self) -> Tensor:
        """See WeightsReader."""
        config = self.config
        return self._tensor("tok_embeddings.weight", (config.vocab_size, config.dim))

    def layer(self, index: int) -> dict[str, Tensor]:
        """See WeightsReader."""
        assert 0 <= index < self.config.n_layers, f"there is no layer {index}"
        return {
            name: self._tensor(f"layers.{index}.{name}", shape)
            for name, shape in layer_shapes(self.config)
        }

    def final(self) -> dict[str, Tensor]:
        """See WeightsReader."""
        return {
            name: self._tensor(name, shape) for name, shape in final_shapes(self.config)
        }

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(device=self._device)
        generator.manual_seed(_seed(self._seed, name))
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        if len(shape) == 1:
            return tensor.normal_(1.0, _NORM_NOISE, generator=generator)
        std = 1 / math.sqrt(shape[1])
        if name.endswith(_RESIDUAL):
            std /= math.sqrt(2 * self.config.n_layers)
        return tensor.normal_(0.0, std, generator=generator)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits everywhere
