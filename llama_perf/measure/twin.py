"""A row's unquantized twin: the model before quantization, run layer by layer.

One layer's weights are read, moved to the device and used for the whole text before
the next are read; the output layer is moved in pieces. So a row and its twin fit where
the row and a layer do. Knows texts and logits, not how they are compared.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.kernels.attention import without_cudnn
from llama_perf.llama.attention import KVCache, Place, VisiblePositions
from llama_perf.llama.engine import PREFILL_CHUNK
from llama_perf.llama.layers import inverse_frequencies, rotary
from llama_perf.llama.transformer import Transformer

HEAD_ROWS = 1 << 14
"""Rows of the output layer that are on the device at a time."""


class Twin:
    """The weights of `reader`, unquantized, in `dtype` on `device`.

    `progress` is told which layer runs.
    """

    def __init__(
        self,
        reader: WeightsReader,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._reader, self._dtype, self._device = reader, dtype, device
        self._progress = progress
        with torch.device("meta"):
            self._model = Transformer(reader.config)

    @torch.no_grad()
    def states(self, text: Tensor, branch: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """The hidden states of `text` and `branch` behind all layers, (T or N, dim).

        `text` is int64 (T,). `branch`, (N,), is read behind the first `at` tokens of
        `text`, in place of the others.
        """
        config, device = self._reader.config, self._device
        tokens = torch.cat((text, branch))
        x = self._moved(self._reader.embedding()[tokens.cpu()])[None]
        longest = max(len(text), at + len(branch))
        cache = KVCache(
            config, batch_size=1, cache_size=longest, dtype=self._dtype, device=device
        )
        frequencies = inverse_frequencies(config, device=device)
        # Whatever of the text the branch replaces in the cache has been read by then.
        chunks = [*_chunks(0, 0, len(text)), *_chunks(len(text), at, len(branch))]
        for index, block in enumerate(self._model.layers):
            self._progress(f"twin: layer {index + 1} of {config.n_layers}")
            window = config.window(index) or 0
            cache.window = window if window < longest else 0
            layer = self._reader.layer(index)
            weights = {name: self._moved(weight) for name, weight in layer.items()}
            del layer
            for tokens_of_chunk, start in chunks:
                part = x[:, tokens_of_chunk]
                end = start + part.shape[1]
                positions = torch.arange(start, end, device=device)
                place = Place(
                    rotary(frequencies, positions), positions, VisiblePositions(end=end)
                )
                with without_cudnn():
                    part.copy_(functional_call(block, weights, (part, cache, place)))
            del weights
        return x[0, : len(text)], x[0, len(text) :]

    def head(self) -> Callable[[Tensor], Tensor]:
        """From states (T, dim) to logits (T, vocabulary) in the twin's dtype."""
        final = self._reader.final()
        norm = {"weight": self._moved(final["norm.weight"])}
        output = final.get("output.weight")
        if output is None:
            output = self._reader.embedding()

        @torch.no_grad()
        def logits(states: Tensor) -> Tensor:
            normed: Tensor = functional_call(self._model.norm, norm, (states,))
            out = states.new_empty(len(states), len(output))
            for first in range(0, len(output), HEAD_ROWS):
                rows = slice(first, first + HEAD_ROWS)
                out[:, rows] = normed @ self._moved(output[rows]).T
            return self._model.gathered(out)

        return logits

    def _moved(self, weight: Tensor) -> Tensor:
        return weight.to(device=self._device, dtype=self._dtype)


def _chunks(first: int, start: int, count: int) -> Iterator[tuple[slice, int]]:
    """Of `count` tokens from `first` on, which stand at positions from `start` on.

    Each is a part of the tokens and the position of its first one.
    """
    for offset in range(0, count, PREFILL_CHUNK):
        end = min(offset + PREFILL_CHUNK, count)
        yield slice(first + offset, first + end), start + offset
