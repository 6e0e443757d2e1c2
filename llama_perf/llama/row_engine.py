"""What measures a row asks of whatever runs its model.

`llama_perf.llama.engine.Engine` offers it, and so does each engine of another library
in `llama_perf.peers`. Knows none of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self, Unpack

import torch
from torch import Tensor

from llama_perf.llama.attention import KVCache
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.decode_step import InjectedSteps
from llama_perf.llama.options import EngineOptions, Request
from llama_perf.llama.transformer import Origin, Transformer

Read = Callable[[Tensor], Tensor]
"""A weight, which may be quantized, as an ordinary tensor."""


class RowModel(Protocol):
    """The weights of a row, wherever they are."""

    origin: Origin | None

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def weight_bytes(self) -> int:
        """Bytes of the weights that a token reads: all but the embedding."""


class RowEngine(Protocol):
    """A model with its caches, ready to generate.

    Prompts are int64 (B, T) on the model's device. Nothing here changes a weight.
    """

    injected: InjectedSteps
    after_chunk: Callable[[int, int], None]
    """Called with the tokens of a prompt that are done, and all of them."""

    @property
    def options(self) -> EngineOptions:
        """How it runs the model."""

    @property
    def caches(self) -> Sequence[KVCache] | None:
        """Those of `architecture`, None where the engine has its own kind."""

    @property
    def filled(self) -> int:
        """The first positions, which are the same for every prompt."""

    @property
    def cache_size(self) -> int:
        """The positions of its caches."""

    @property
    def model(self) -> RowModel:
        """Its weights."""

    @property
    def architecture(self) -> Transformer:
        """The model's modules in this project's code, for a reference.

        Their weights may be on the meta device: `layer_weights` has them.
        """

    @property
    def output_projection(self) -> Tensor:
        """The weight of a linear of the first layer, behind its attention."""

    def layer_weights(self, index: int, read: Read) -> dict[str, Tensor]:
        """The weights of a layer, by their names in `architecture`."""

    def final_weights(self, read: Read) -> dict[str, Tensor]:
        """`norm.weight` (dim,) and `output.weight` (V, dim)."""

    def embedded(self, tokens: Tensor) -> Tensor:
        """The embeddings (B, T, dim) of `tokens`."""

    def plain_logits(self, text: Tensor, places: Tensor) -> Tensor:
        """Float32 logits (B, N, V) at `places` (B, N) of `text` behind `filled`.

        The whole text at once, operator by operator, neither compiled nor fused.
        """

    def check_prompt(
        self, prompt: Tensor, *, max_new_tokens: int, lengths: Tensor | None = None
    ) -> None:
        """Raise PromptError unless the prompt and the new tokens fit."""

    def fill(self, tokens: Tensor) -> None:
        """Fill the first positions with `tokens` (B, T), for every prompt."""

    def longer(self, cache_size: int) -> Self:
        """An engine over the same weights with a cache of another size, not filled."""

    def read(
        self, text: Tensor, prompt_length: int, *, lengths: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Logits (B, V) in front of each token of a text behind its prompt.

        Each token is then read as a generation would read it.
        """

    def prefill(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, V) after `tokens`, behind `filled`."""

    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits (B, V) after `token` (B, 1), at `position`, (1,), the next one."""

    def generate(
        self,
        prompt: Tensor,
        *,
        after_token: Callable[[], object] = ...,
        **request: Unpack[Request],
    ) -> Tensor:
        """The prompt and all new tokens, (B, T + new).

        `after_token` is called each time that the work which chooses a token was given
        to the device.
        """

    def watched(
        self,
        prompt: Tensor,
        *,
        after_token: Callable[[], object],
        **request: Unpack[Request],
    ) -> None:
        """As `generate`, for a profiler that `after_token` starts and stops."""

    def observe(
        self, prompt: Tensor, *, observed: int, **request: Unpack[Request]
    ) -> tuple[Tensor, Tensor]:
        """As `generate`; the first new tokens (B, observed), and the logits of each."""

    def cache_tensors(self) -> list[Tensor]:
        """All tensors of the caches and masks."""

    def tensors(self) -> list[Tensor]:
        """The weights, the embedding, and `cache_tensors`."""

    def copy(self) -> Self:
        """An engine with weights and caches of its own, of the same values."""
