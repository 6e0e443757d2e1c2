"""One step of decoding that feeds itself: token and position move on in place.

Nothing of it waits for the host. `CapturedStep` is the same as one CUDA graph: all
layers, the head, sampling and the feeding back are replayed by a single launch for
every token, wherever the position, which is read on the device. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llama_perf.graphs import captured, warm_up


class Step:
    """`decode` (token, position) to logits, `choose` logits to the next token.

    `token` is int64 (B, 1), `position` int64 (1,) or (B, 1); `history`, int64 (B, N),
    holds the tokens since `begin`, of which there may be N. `logits`, (B, vocabulary),
    are what the last token was chosen from, until the next one is begun.
    """

    logits: Tensor | None = None

    def __init__(
        self,
        decode: Callable[[Tensor, Tensor], Tensor],
        choose: Callable[[Tensor], Tensor],
        *,
        token: Tensor,
        position: Tensor,
        most: int,
    ) -> None:
        self._decode = decode
        self._choose = choose
        self.token = torch.empty_like(token)
        self.position = torch.empty_like(position)
        self.history = token.new_zeros((len(token), most))
        self._count = token.new_zeros(1)

    def begin(self, token: Tensor, position: Tensor) -> None:
        """Start with the first token of a generation, to be read at `position`."""
        self.position.copy_(position)
        self._count.zero_()
        self._feed(token)

    def run(self) -> None:
        """From `token` to the next one."""
        self._once()

    def repeat(self) -> None:
        """Decode `token` and throw the result away: all stays as it is."""
        self._decode(self.token, self.position)

    def _once(self) -> None:
        # Those before are given back first: they are no part of a step's peak.
        self.logits = None
        self.logits = self._decode(self.token, self.position)
        self._feed(self._choose(self.logits))
        self.position.add_(1)

    def _feed(self, token: Tensor) -> None:
        self.token.copy_(token)
        self.history.index_copy_(1, self._count, token)
        self._count.add_(1)


class CapturedStep(Step):
    """A step whose `run` replays a CUDA graph, captured once when it first begins.

    `generator` is what `choose` draws from, None for the device's own; `repeats` says
    whether `repeat` is needed, which has a graph of its own.
    """

    def __init__(
        self,
        decode: Callable[[Tensor, Tensor], Tensor],
        choose: Callable[[Tensor], Tensor],
        *,
        token: Tensor,
        position: Tensor,
        most: int,
        generator: torch.Generator | None,
        repeats: bool = False,
    ) -> None:
        super().__init__(decode, choose, token=token, position=position, most=most)
        self._generator = generator
        self._repeats = repeats
        self._graph: torch.cuda.CUDAGraph | None = None
        self._repeated: torch.cuda.CUDAGraph | None = None
        self._captured_logits: Tensor | None = None

    def begin(self, token: Tensor, position: Tensor) -> None:
        """Start; the first time, run the step once and capture it."""
        super().begin(token, position)
        if self._graph is not None:
            return
        # Kernels are compiled and tuned before the capture, which allows neither.
        # The run's draw, and what it wrote, are undone.
        state = None if self._generator is None else self._generator.get_state()
        warm_up(self._once)
        super().begin(token, position)
        if self._generator is not None and state is not None:
            self._generator.set_state(state)
        self._graph = captured(self._once, self._generator)
        # Held, their memory is no other tensor's of the graph.
        self._captured_logits = self.logits
        if self._repeats:
            self._repeated = captured(super().repeat, None)

    def run(self) -> None:
        """From `token` to the next one, by one launch."""
        assert self._graph is not None, "it has begun"
        self._graph.replay()
        self.logits = self._captured_logits

    def repeat(self) -> None:
        """Decode `token` and throw the result away, by one launch."""
        assert self._repeated is not None, "it was made with repeats"
        self._repeated.replay()
