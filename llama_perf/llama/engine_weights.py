"""The weights and the plain logits of this project's engine, for references."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from llama_perf.llama.attention import KVCache, VisiblePositions
from llama_perf.llama.options import Request
from llama_perf.llama.row_engine import Read
from llama_perf.llama.transformer import Transformer, TransformerBlock


class EngineWeights(ABC):
    """What `llama_perf.llama.row_engine` asks of an engine besides generating."""

    model: Transformer
    caches: Sequence[KVCache]
    filled: int

    @property
    def architecture(self) -> Transformer:
        """See `RowEngine`."""
        return self.model

    @property
    def output_projection(self) -> Tensor:
        """See `RowEngine`."""
        weight: Tensor = self.model.get_parameter("layers.0.attention.wo.weight")
        return weight

    def layer_weights(self, index: int, read: Read) -> dict[str, Tensor]:
        """See `RowEngine`."""
        layer = self.model.layers[index]
        return {name: read(weight) for name, weight in layer.named_parameters()}

    def final_weights(self, read: Read) -> dict[str, Tensor]:
        """See `RowEngine`."""
        weights = {"norm": self.model.norm.weight, "output": self.model.output.weight}
        return {f"{name}.weight": read(weight) for name, weight in weights.items()}

    def embedded(self, tokens: Tensor) -> Tensor:
        """See `RowEngine`."""
        embeddings: Tensor = self.model.tok_embeddings(tokens)
        return embeddings

    @abstractmethod
    def cache_tensors(self) -> list[Tensor]:
        """See `Engine`."""

    def tensors(self) -> list[Tensor]:
        """The weights, the embedding, and `cache_tensors`."""
        return [*self.model.parameters(), *self.model.buffers(), *self.cache_tensors()]

    @abstractmethod
    def stream(self, prompt: Tensor, **request: Unpack[Request]) -> Iterator[Tensor]:
        """See `Engine`."""

    def watched(
        self,
        prompt: Tensor,
        *,
        after_token: Callable[[], object],
        **request: Unpack[Request],
    ) -> None:
        """See `RowEngine`."""
        # A step's calls are those of a stream, in stored results too.
        for _ in self.stream(prompt, **request):
            after_token()

    @torch.no_grad()
    def plain_logits(self, text: Tensor, places: Tensor) -> Tensor:
        """See `RowEngine`."""
        start, end = self.filled, self.filled + text.shape[1]
        x = self.model.hidden(
            text,
            torch.arange(start, end, device=self.model.device),
            caches=self.caches,
            visible=VisiblePositions(end=end),
            run_block=TransformerBlock.forward,
        )
        rows = torch.arange(len(places), device=x.device)[:, None]
        return self.model.head(x[rows, places]).float()
