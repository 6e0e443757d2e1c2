"""The share of a model's weights that one of several ranks has.

Of query, key and value it has the rows of its heads, of gate, up and the output layer
some rows, of the attention's output and of down some columns. Each rank has the whole
embedding and all norms, and the first has the biases of what is cut by columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.devices.ranks import Rank
from llama_perf.llama.config import ModelConfig


def sharded(reader: WeightsReader, rank: Rank) -> WeightsReader:
    """The share of `rank` in the weights of `reader`; raises SpecError."""
    assert rank.count > 1, "several ranks"
    return ShardedWeights(
        config=reader.config.of_rank(rank.count),
        source=reader.source,
        saved=reader.saved,
        own_output=reader.own_output,
        read_s=reader.read_s,
        notes=reader.notes,
        whole=reader,
        rank=rank,
    )


@dataclass(kw_only=True)
class ShardedWeights(WeightsReader):
    """The WeightsReader of one rank; `config` is that of its share."""

    whole: WeightsReader
    rank: Rank

    def embedding(self) -> Tensor:
        """See `WeightsReader.embedding`: the whole of it."""
        return self.whole.embedding()

    def layer(self, index: int) -> dict[str, Tensor]:
        """See `WeightsReader.layer`: this rank's share of each weight."""
        return {
            name: self._share(name, weight)
            for name, weight in self.whole.layer(index).items()
        }

    def final(self) -> dict[str, Tensor]:
        """See `WeightsReader.final`; of a tied model too it has an output layer."""
        final = self.whole.final()
        if "output.weight" not in final:
            # Tied: the rank's rows of the embedding.
            final["output.weight"] = self.embedding()
        return {name: self._share(name, weight) for name, weight in final.items()}

    def _share(self, name: str, weight: Tensor) -> Tensor:
        linear, _, kind = name.rpartition(".")
        cut = self.config.cut_of(linear) if linear in _linears(self.config) else None
        if cut == "columns":
            if kind == "bias":
                return weight if self.rank.is_first else torch.zeros_like(weight)
            return _piece(weight, 1, self.rank).clone()
        if linear == "attention.wqkv":
            config = self.whole.config
            heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
            parts = weight.split([count * config.head_dim for count in heads])
            return torch.cat([_piece(part, 0, self.rank) for part in parts])
        return _piece(weight, 0, self.rank).clone() if cut == "rows" else weight


def _linears(config: ModelConfig) -> set[str]:
    return {*config.linears, "output"}


def _piece(tensor: Tensor, dimension: int, rank: Rank) -> Tensor:
    size = tensor.shape[dimension] // rank.count
    return tensor.narrow(dimension, rank.index * size, size)
