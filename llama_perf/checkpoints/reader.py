"""Weights, read from a checkpoint or made up: one face for every source.

Names are Meta's (`tok_embeddings.weight`, `layers.0.attention.wqkv.weight`, ...) and
query and key rows are in the order of RoPE on interleaved pairs. A checkpoint's
tensors come on the CPU in the dtype they are stored in (GGUF's in float32, since it
stores most of them quantized); synthetic ones in the dtype and on the device asked
for. Quantized tensors come only from what `save_model` wrote. One of several ranks gets
its share of each tensor. Knows no file.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from llama_perf.checkpoints.cut import Cut, Shape, cut_of_rank, linear_of
from llama_perf.checkpoints.saved import Saved
from llama_perf.devices.ranks import ALONE, Rank
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import Origin


def layer_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """The names and shapes of one block's weights, in the model's order."""
    for name, shape in config.linears.items():
        yield f"{name}.weight", shape
    for name, size in config.vectors.items():
        yield name, (size,)


@dataclass(kw_only=True)
class WeightsReader:
    """A checkpoint, or a generator of synthetic weights.

    Every call reads anew, so one layer at a time is in memory; after `keep` all are. A
    tensor may alias a private map of the file: writing to it never reaches the file,
    and whoever measures copies it, or the disk is read while the clock runs.

    The reader of a share (see `sharded`) reads what its `rank` has of each tensor, and
    `config` is the shape of that. Each rank has the whole embedding and all norms, and
    the first has the biases of what is cut by columns.
    """

    config: ModelConfig
    source: str
    """The weights as a result records them: "synthetic", or "<format>:<name>".

    The name is the file's for a GGUF, else the folder's. A folder of `save_model` says
    what is in it: "pth:<name> (int8wo, native, from gguf:<file>)".
    """
    saved: Saved | None = None
    """The record that `save_model` wrote with the weights; None for all others."""
    own_output: bool = False
    """Whether a tied model has an output layer: its own was quantized and saved."""
    read_s: float = 0.0
    """What opening and reading took, where it was done once for several rows."""
    notes: tuple[str, ...] = ()
    """What a user should know of the choice of these weights, a line each."""
    rank: Rank = ALONE
    whole: ModelConfig = field(init=False)
    """The shape of the model that all ranks share."""
    is_kept: bool = field(default=False, init=False)
    """Whether calls give what `keep` has read."""

    def __post_init__(self) -> None:
        self.whole = self.config

    @property
    def origin(self) -> Origin:
        """The origin of a model with these weights."""
        return Origin(weights=self.source) if self.saved is None else self.saved.origin

    @property
    def kept_bytes(self) -> float:
        """The most that `keep` takes, in float32; infinite where nothing is kept."""
        shapes = (self._cut(name).shape_of(shape) for name, shape in self._shapes())
        return 4 * sum(map(math.prod, shapes))

    def keep(self) -> None:
        """Read every tensor now and keep it for later calls."""
        raise NotImplementedError

    def check_cuts(self) -> None:
        """Raise SpecError for a tensor that cannot be cut as the rank's share is."""

    def embedding(self) -> Tensor:
        """`tok_embeddings.weight`, (vocab_size, dim)."""
        return self._weight(*self._embedding_shape)

    def layer(self, index: int) -> dict[str, Tensor]:
        """The weights of one block by `layer_shapes`' names, those inside the block."""
        assert 0 <= index < self.config.n_layers, f"there is no layer {index}"
        return {
            name: self._weight(f"layers.{index}.{name}", shape)
            for name, shape in layer_shapes(self.whole)
        }

    def final(self) -> dict[str, Tensor]:
        """`norm.weight` (dim,) and, unless tied, `output.weight` (output_size, dim).

        The share of a tied model has it too: some rows of the embedding.
        """
        final = {
            name: self._weight(name, shape) for name, shape in self._final_shapes()
        }
        if self.rank.count > 1 and "output.weight" not in final:
            cut = self._cut("output.weight")
            final["output.weight"] = (
                cut.of(self.embedding())
                if self.is_kept
                else self._tensor(*self._embedding_shape, cut)
            )
        return final

    @property
    def _embedding_shape(self) -> tuple[str, Shape]:
        return "tok_embeddings.weight", (self.whole.vocab_size, self.whole.dim)

    def _final_shapes(self) -> Iterator[tuple[str, Shape]]:
        whole = self.whole
        yield "norm.weight", (whole.dim,)
        if self.own_output or not whole.tied_embeddings:
            yield "output.weight", (whole.vocab_size, whole.dim)

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        """The names and whole shapes of all weights that are read."""
        yield self._embedding_shape
        for index in range(self.whole.n_layers):
            for name, shape in layer_shapes(self.whole):
                yield f"layers.{index}.{name}", shape
        yield from self._final_shapes()

    def _cut(self, name: str) -> Cut:
        return cut_of_rank(name, self.whole, self.rank)

    def _weight(self, name: str, shape: Shape) -> Tensor:
        weight = self._tensor(name, shape, self._cut(name))
        linear, kind = linear_of(name)
        is_sum = kind == "bias" and self.config.cut_of(linear) == "columns"
        return torch.zeros_like(weight) if is_sum and not self.rank.is_first else weight

    def _tensor(self, name: str, shape: Shape, cut: Cut) -> Tensor:
        """The part `cut` of a tensor whose whole shape is `shape`."""
        raise NotImplementedError


@dataclass
class SyntheticWeights(WeightsReader):
    """The WeightsReader of a model that has no file.

    Made directly on `device` in `dtype`. The values depend on the tensor's name,
    its shape, the dtype and the device's type, not on the order of reading; a
    CUDA device's differ from the CPU's. Normal, with standard deviation
    1 / sqrt(fan-in) for projections and 1 / sqrt(dim) for the embedding, so that
    logits have a standard deviation near 1 whether it is tied or not. Norms are near 1,
    biases near 0.
    """

    config: ModelConfig
    _: KW_ONLY
    dtype: torch.dtype
    device: torch.device
    source: str = "synthetic"

    def keep(self) -> None:
        """See `WeightsReader.keep`: they are made anew, which takes no longer."""

    def _tensor(self, name: str, shape: Shape, cut: Cut) -> Tensor:
        # A rank's values are those of the whole tensor, which is made for it.
        made = self._made(name, shape)
        return cut.copied_from(made)

    def _made(self, name: str, shape: Shape) -> Tensor:
        # The 0 is part of the name so that the values stay those of earlier versions.
        digest = hashlib.sha256(f"0:{name}".encode()).digest()
        generator = torch.Generator(device=self.device)
        # torch takes 63 bits everywhere.
        generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        if len(shape) == 1:
            mean, spread = (0.0, 0.1) if name.endswith(".bias") else (1.0, 0.02)
            return tensor.normal_(mean, spread, generator=generator)
        std = 1 / math.sqrt(shape[1])
        if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
            # These add to the residual stream, twice a layer; scaled so that the sum
            # over all layers keeps the variance of one (GPT-2's initialisation).
            std /= math.sqrt(2 * self.config.n_layers)
        return tensor.normal_(0.0, std, generator=generator)
