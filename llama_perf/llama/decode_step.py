"""One step of decoding that feeds itself: token and position move on in place.

Nothing of it waits for the host. `CapturedStep` is the same as one CUDA graph: all
layers, the head, sampling and the feeding back are replayed by a single launch for
every token, wherever the position, which is read on the device; so is a short prompt.
Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.llama.graphs import captured, warm_up
from llama_perf.llama.sampling import Feed

Prefill = Callable[[Tensor, Tensor | None], Tensor]


class Step:
    """`decode` (token, position) to logits, which `feed` chooses the next token from.

    `prefill` (prompt, lengths or None) to the logits of the first. `fed`, what all of
    it moves on, has room for the tokens of a generation. `logits`, (B, vocabulary), are
    what the last token was chosen from, until the next one is begun.
    """

    logits: Tensor | None = None

    def __init__(
        self,
        prefill: Prefill,
        decode: Callable[[Tensor, Tensor], Tensor],
        feed: Feed,
        fed: DecodeState,
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._feed = feed
        self.fed = fed

    def begin(self, prompt: Tensor, lengths: Tensor | None, *, behind: int) -> None:
        """Read `prompt`, (B, T), `behind` as many positions; choose the first token."""
        self._first(prompt, lengths, behind)

    def run(self) -> None:
        """From `fed.token` to the next one."""
        self._once()

    def repeat(self) -> None:
        """Decode `fed.token` and throw the result away: all stays as it is."""
        self._decode(self.fed.token, self.fed.position)

    def _first(self, prompt: Tensor, lengths: Tensor | None, behind: int) -> None:
        # Where the last token of the prompt stands: feeding moves on from there. Filled
        # there: a copy from the host would wait for the device.
        if lengths is None:
            self.fed.position.fill_(behind + prompt.shape[1] - 1)
        else:
            self.fed.position.copy_(lengths[:, None] + (behind - 1))
        self.fed.count.zero_()
        self._choose(self._prefill, prompt, lengths)

    def _once(self) -> None:
        self._choose(self._decode, self.fed.token, self.fed.position)

    def _choose(self, work: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        # Those before are given back first: they are no part of a step's peak.
        self.logits = None
        self.logits = work(*inputs)
        self._feed(self.logits, self.fed)


class CapturedStep(Step):
    """A step whose `run` replays a CUDA graph, captured once, when it first runs.

    A prompt of at most `few` tokens is a graph too, one for each length. `generator` is
    what `feed` draws from, None for the device's own or none; `repeats` says whether
    `repeat` is needed, which has a graph of its own.
    """

    def __init__(
        self,
        prefill: Prefill,
        decode: Callable[[Tensor, Tensor], Tensor],
        feed: Feed,
        fed: DecodeState,
        *,
        generator: torch.Generator | None,
        few: int = 0,
        repeats: bool = False,
    ) -> None:
        super().__init__(prefill, decode, feed, fed)
        self._generator = generator
        self._few = few
        self._repeats = repeats
        self._graph: torch.cuda.CUDAGraph | None = None
        self._repeated: torch.cuda.CUDAGraph | None = None
        self._captured_logits: Tensor | None = None
        self._beginnings: dict[int, _Beginning] = {}

    def begin(self, prompt: Tensor, lengths: Tensor | None, *, behind: int) -> None:
        """Read `prompt`, by one launch where it is short, and choose the first token.

        The first time of its length it is run once and captured.
        """
        length = prompt.shape[1]
        if prompt.numel() > self._few:
            super().begin(prompt, lengths, behind=behind)
            return
        known = self._beginnings.get(length)
        if known is None or known.behind != behind:
            known = _Beginning(self._first, prompt, lengths, behind)
            known.logits = self.logits
            self._beginnings[length] = known
        known.run(prompt, lengths)
        self.logits = known.logits

    def run(self) -> None:
        """From `fed.token` to the next one, by one launch."""
        self._ready().replay()
        self.logits = self._captured_logits

    def repeat(self) -> None:
        """Decode `fed.token` and throw the result away, by one launch."""
        self._ready()
        assert self._repeated is not None, "it was made with repeats"
        self._repeated.replay()

    def _ready(self) -> torch.cuda.CUDAGraph:
        if self._graph is None:
            # Kernels are compiled and tuned before the capture, which allows neither.
            # The run's draw, and what it moved on, are undone.
            state = None if self._generator is None else self._generator.get_state()
            moved = (self.fed.token, self.fed.position, self.fed.count)
            before = [each.clone() for each in moved]
            warm_up(self._once)
            for each, was in zip(moved, before, strict=True):
                each.copy_(was)
            if self._generator is not None and state is not None:
                self._generator.set_state(state)
            self._graph = captured(self._once, self._generator)
            # Held, their memory is no other tensor's of the graph.
            self._captured_logits = self.logits
            if self._repeats:
                self._repeated = captured(super().repeat, None)
        return self._graph


class _Beginning:
    """A prompt of one length, as one graph that reads a copy of it."""

    logits: Tensor | None = None

    def __init__(
        self,
        first: Callable[[Tensor, Tensor | None, int], None],
        prompt: Tensor,
        lengths: Tensor | None,
        behind: int,
    ) -> None:
        self.behind = behind
        self._prompt = prompt.clone()
        self._lengths = None if lengths is None else lengths.clone()

        def work() -> None:
            first(self._prompt, self._lengths, behind)

        warm_up(work)
        self._graph = captured(work)

    def run(self, prompt: Tensor, lengths: Tensor | None) -> None:
        """All of it; the copies are all that is launched beside the graph."""
        self._prompt.copy_(prompt)
        if self._lengths is not None and lengths is not None:
            self._lengths.copy_(lengths)
        self._graph.replay()
