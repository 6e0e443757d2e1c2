"""One decode step: it updates its token and position in place on the device.

Nothing in it waits for the host, so the whole step can be one CUDA graph: all layers,
the head and the choice of the next token. `CapturedDecodeStep` replays that graph for
every token, and one for a short prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.llama.sampling import ChooseToken

if TYPE_CHECKING:
    from llama_perf.llama.engine import Engine

Work = Callable[[], None]
ReadPrompt = Callable[[Tensor, Tensor | None], Tensor | None]
"""Of a prompt and its lengths; returns the logits behind it."""


def warm_up(work: Work) -> None:
    """Run `work` on the stream that it will be captured on."""
    stream = _capture_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)


def capture_graph(
    work: Work, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Capture `work`, which is not run; a replay draws from `generator`."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=_capture_stream(torch.cuda.current_device())):
        work()
    return graph


@cache
def _capture_stream(_device: int) -> torch.cuda.Stream:
    """One stream a device: cuBLAS keeps 32 MB for each stream that it has run on."""
    return torch.cuda.Stream()


class DecodeStep:
    """Prefill, then one token after the other.

    `choose` takes the next token from the logits (B, V) of `engine`. `state` has room
    for the tokens of a generation. `logits` are those of the last token, until the next
    step.
    """

    logits: Tensor | None = None

    def __init__(self, engine: Engine, choose: ChooseToken, state: DecodeState) -> None:
        self._engine = engine
        self._choose = choose
        self.state = state

    def begin(self, prompt: Tensor, lengths: Tensor | None, start: int) -> None:
        """Read `prompt`, (B, T), from position `start` on; choose the first token."""
        # The position of the prompt's last token, from which `choose` advances. Filled
        # on the device: a copy from the host would wait for it.
        if lengths is None:
            self.state.position.fill_(start + prompt.shape[1] - 1)
        else:
            self.state.position.copy_(lengths[:, None] + (start - 1))
        self.state.count.zero_()
        self._next(self._engine.prefill, prompt, lengths)

    def run(self) -> None:
        """Decode `state.token` and choose the next one."""
        self._next(self._engine.decode, self.state.token, self.state.position)

    def repeat(self) -> None:
        """Decode `state.token` again and discard the result: `state` stays."""
        self._engine.decode(self.state.token, self.state.position)

    def _next(self, work: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        # The last logits are freed first: they do not count into the step's peak.
        self.logits = None
        self.logits = work(*inputs)
        self._choose(self.logits, self.state)


class CapturedDecodeStep(DecodeStep):
    """A step whose `run` replays a CUDA graph, captured when it first runs.

    A prompt of at most `max_prompt_tokens` tokens is captured too, once for each
    length. `generator` is what `choose` draws from, or None.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _repeat_graph: torch.cuda.CUDAGraph | None = None
    _graph_logits: Tensor | None = None

    def __init__(
        self,
        engine: Engine,
        choose: ChooseToken,
        state: DecodeState,
        *,
        generator: torch.Generator | None,
        max_prompt_tokens: int,
    ) -> None:
        super().__init__(engine, choose, state)
        self._generator = generator
        self._max_prompt_tokens = max_prompt_tokens
        # By length: where the prompt starts, and what reads another one there.
        self.prompts: dict[int, tuple[int, ReadPrompt]] = {}

    def begin(self, prompt: Tensor, lengths: Tensor | None, start: int) -> None:
        """Read `prompt`, by one launch where it is short, and choose the first token.

        The first prompt of its length is run once and captured.
        """
        if prompt.numel() > self._max_prompt_tokens:
            super().begin(prompt, lengths, start)
            return
        length = prompt.shape[1]
        if length not in self.prompts or self.prompts[length][0] != start:
            self.prompts[length] = start, self._captured_prompt(prompt, lengths, start)
        self.logits = self.prompts[length][1](prompt, lengths)

    def _captured_prompt(
        self, first: Tensor, first_lengths: Tensor | None, start: int
    ) -> ReadPrompt:
        own, own_lengths = first.clone(), first_lengths
        if own_lengths is not None:
            own_lengths = own_lengths.clone()
        work = partial(super().begin, own, own_lengths, start)
        warm_up(work)
        graph = capture_graph(work)
        logits = self.logits

        # It does not hold the step, which frees its graphs at once when it is dropped.
        def read(prompt: Tensor, lengths: Tensor | None) -> Tensor | None:
            own.copy_(prompt)
            if own_lengths is not None and lengths is not None:
                own_lengths.copy_(lengths)
            graph.replay()
            return logits

        return read

    def run(self) -> None:
        """Decode `state.token` and choose the next one, by one launch."""
        self._captured_graph().replay()
        self.logits = self._graph_logits

    def repeat(self) -> None:
        """Decode `state.token` again and discard the result, by one launch."""
        # It compiles and tunes all kernels, which no capture allows.
        self._captured_graph()
        if self._repeat_graph is None:
            self._repeat_graph = capture_graph(super().repeat)
        self._repeat_graph.replay()

    def _captured_graph(self) -> torch.cuda.CUDAGraph:
        if self._graph is None:
            self._warm_up()
            self._graph = capture_graph(super().run, self._generator)
            # A reference keeps the graph from giving their memory to other tensors.
            self._graph_logits = self.logits
        return self._graph

    def _warm_up(self) -> None:
        """Compile and tune all kernels, which no capture allows; undo the step."""
        draws = None if self._generator is None else self._generator.get_state()
        tensors = (self.state.token, self.state.position, self.state.count)
        before = [tensor.clone() for tensor in tensors]
        warm_up(super().run)
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)
        if self._generator is not None and draws is not None:
            self._generator.set_state(draws)
